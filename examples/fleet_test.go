package examples

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// process is a running program.
type process struct {
	name   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    lockedBuffer
	exited chan struct{} // closed when err is set
	err    error
}

// spawn starts a program in the space. When the test ends it must have exited.
func (s *space) spawn(t *testing.T, name string, env []string, args ...string) *process {
	t.Helper()
	p := &process{name: name, exited: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(shared.programs, name), args...)
	p.cmd.Env = append(append(os.Environ(),
		"DATABASE_URL="+s.databaseURL, "REDIS_URL="+s.redisURL), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	var err error
	p.in, err = p.cmd.StdinPipe()
	must(t, err)
	must(t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited
	})
	return p
}

// wait waits until the program has ended, which must be in good order.
func (p *process) wait(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		<-p.exited
		t.Fatalf("%s did not end in a minute:\n%s", p.name, p.out.String())
	}
	if p.err != nil {
		t.Fatalf("%s: %v\n%s", p.name, p.err, p.out.String())
	}
}

// running reports whether the program has not ended yet.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *process) interrupt(t *testing.T) {
	t.Helper()
	if p.running() {
		must(t, p.cmd.Process.Signal(os.Interrupt))
	}
}

// says waits until the program has printed the text n times.
func (p *process) says(text string, n int) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		switch {
		case strings.Count(p.out.String(), text) >= n:
			return nil
		case !p.running():
			return fmt.Errorf("%s has ended: %v\n%s", p.name, p.err, p.out.String())
		case time.Now().After(deadline):
			return fmt.Errorf("%s does not say %q in time:\n%s", p.name, text, p.out.String())
		}
	}
}

// place has a program that reads lines from its input place an order, or several, for the n-th
// time.
func (p *process) place(n int) error {
	if _, err := io.WriteString(p.in, "atlas\n"); err != nil {
		return err
	}
	return p.says("placed", n)
}

// lockedBuffer can be read while a process writes to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// witness samples pg_stat_activity.
type witness struct {
	stop context.CancelFunc
	done chan struct{}
	peak int
	err  error
}

// watch samples how many backends of the programs there are that satisfy the condition, until peak
// is called.
func (s *space) watch(t *testing.T, condition string, args ...any) *witness {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL(t, shared.postgres.AdminURL(), "postgres"))
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	w := &witness{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer conn.Close(context.Background())
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil && w.err == nil {
			var n int
			w.err = conn.QueryRow(context.Background(), `select count(*) from pg_stat_activity
				where backend_type = 'client backend' and usename <> 'postgres' and `+condition,
				args...).Scan(&n)
			w.peak = max(w.peak, n)
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
	t.Cleanup(func() { _ = w.end() })
	return w
}

// watchDatabase samples the backends of the space's database.
func (s *space) watchDatabase(t *testing.T) *witness {
	return s.watch(t, "datname = $1", s.database)
}

func (w *witness) end() error {
	w.stop()
	<-w.done
	return w.err
}

// most ends the witness and returns the most backends that it saw at once.
func (w *witness) most(t *testing.T) int {
	t.Helper()
	must(t, w.end())
	return w.peak
}

// A fleet is the processes of one program that a test runs together.
type fleet struct {
	program string
	setUp   []string // a program to run before, and its arguments
	orders  int      // that each process places
	extra   int      // backends under another cap
	service bool     // runs until it is interrupted
	says    string   // what each process prints
}

const (
	semaphoreName = "orders-db"
	capacity      = 5
	processes     = 2
)

// run runs the processes, and returns the most backends that they had at once.
func (f *fleet) run(t *testing.T, s *space) int {
	t.Helper()
	_, err := s.rows.Exec(t.Context(), "truncate orders")
	must(t, err)
	w := s.watchDatabase(t)
	var all []*process
	for range processes {
		all = append(all, s.spawn(t, f.program, nil))
	}
	if f.service {
		eventually(t, "all orders", func() bool {
			for _, p := range all {
				if !p.running() {
					p.wait(t)
					t.Fatalf("%s ended by itself:\n%s", f.program, p.out.String())
				}
			}
			return s.orders(t) >= processes*f.orders
		})
		for _, p := range all {
			p.interrupt(t)
		}
	}
	for _, p := range all {
		p.wait(t)
		if !strings.Contains(p.out.String(), f.says) {
			t.Errorf("%s does not say %q:\n%s", f.program, f.says, p.out.String())
		}
	}
	if got := s.orders(t); got != processes*f.orders {
		t.Errorf("%d orders, want %d", got, processes*f.orders)
	}
	return w.most(t)
}

// test runs the fleet under its cap. Then it runs the fleet again, under a cap that an operator has
// raised. That one needs more backends, or the first run has proven nothing.
func (f *fleet) test(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	if f.setUp != nil {
		s.spawn(t, f.setUp[0], nil, f.setUp[1:]...).wait(t)
	}
	want := capacity + f.extra
	if got := f.run(t, s); got != want {
		t.Errorf("%d backends at once, want %d", got, want)
	}
	s.nothingLeft(t, semaphoreName)
	s.liftCap(t, semaphoreName)
	if got := f.run(t, s); got <= want {
		t.Errorf("%d backends at once without a cap: the cap of %d was not needed", got, want)
	}
}

// nothingLeft fails if the programs, which have ended, left anything in Redis.
func (s *space) nothingLeft(t *testing.T, name string) {
	t.Helper()
	snapshot, err := s.inspector(t, name).Snapshot(t.Context())
	must(t, err)
	if snapshot.Held != 0 || len(snapshot.Sessions) != 0 || snapshot.Quarantined != 0 {
		t.Errorf("%s: %d permits, %d sessions and %d in quarantine after the programs have ended",
			name, snapshot.Held, len(snapshot.Sessions), snapshot.Quarantined)
	}
}

// liftCap sets a capacity that the programs cannot use up.
func (s *space) liftCap(t *testing.T, name string) {
	t.Helper()
	must(t, s.inspector(t, name).SetCapacity(t.Context(), 100))
}

// backends counts the backends whose application_name is one of those.
func (s *space) backends(t *testing.T, names ...string) (n int) {
	t.Helper()
	must(t, s.admin.QueryRow(t.Context(), `select count(*) from pg_stat_activity
		where datname = $1 and application_name = any($2)`, s.database, names).Scan(&n))
	return n
}
