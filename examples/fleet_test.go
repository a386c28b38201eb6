package examples

import (
	"bytes"
	"context"
	"errors"
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

// errStarved says that a program lost its leases, because the machine gave it no time for seconds.
// That is no fault of the program's.
var errStarved = errors.New("lease lost")

// patience is how long a program may take for what takes it a second on a machine that is not busy.
const patience = 4 * time.Minute

// wait waits until the program has ended. It returns an error unless it ended in good order.
func (p *process) wait() error {
	select {
	case <-p.exited:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.exited
		return fmt.Errorf("%s did not end in %v:\n%s", p.name, patience, p.out.String())
	}
	if p.err == nil {
		return nil
	}
	return p.failed()
}

// failed is the error of a program that has ended too early, or in bad order.
func (p *process) failed() error {
	if text := p.out.String(); strings.Contains(text, errStarved.Error()) {
		return fmt.Errorf("%s: %w", p.name, errStarved)
	}
	return fmt.Errorf("%s: %v\n%s", p.name, p.err, p.out.String())
}

// kill ends programs that are of no use any more.
func kill(all ...*process) {
	for _, p := range all {
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// patiently tries again if the machine was starved, when the backends of the first try have ended.
func (s *space) patiently(t *testing.T, try func() error) {
	t.Helper()
	for n := 1; ; n++ {
		err := try()
		if !errors.Is(err, errStarved) || n == tries {
			must(t, err)
			return
		}
		t.Log(err, ": once more")
		for left := 1; left > 0; time.Sleep(5 * time.Millisecond) {
			must(t, s.admin.QueryRow(t.Context(), `select count(*) from pg_stat_activity
				where datname = $1 and usename <> 'postgres'`, s.database).Scan(&left))
		}
	}
}

// tries is how often a test is tried on a machine that gives it no time.
const tries = 5

// running reports whether the program has not ended yet.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// end has the program end, and waits for it.
func (p *process) end() error {
	_ = p.cmd.Process.Signal(os.Interrupt)
	return p.wait()
}

// says waits until the program has printed the text n times.
func (p *process) says(text string, n int) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		switch {
		case strings.Count(p.out.String(), text) >= n:
			return nil
		case !p.running():
			return p.failed()
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
func (f *fleet) run(t *testing.T, s *space) (int, error) {
	t.Helper()
	_, err := s.rows.Exec(t.Context(), "truncate orders")
	must(t, err)
	w := s.watchDatabase(t)
	var all []*process
	for range processes {
		all = append(all, s.spawn(t, f.program, nil))
	}
	if f.service {
		if err := s.awaitOrders(t, all, processes*f.orders); err != nil {
			return 0, err
		}
		for _, p := range all {
			_ = p.cmd.Process.Signal(os.Interrupt)
		}
	}
	for _, p := range all {
		if err := p.wait(); err != nil {
			return 0, err
		}
		if !strings.Contains(p.out.String(), f.says) {
			t.Errorf("%s does not say %q:\n%s", f.program, f.says, p.out.String())
		}
	}
	if got := s.orders(t); got != processes*f.orders {
		t.Errorf("%d orders, want %d", got, processes*f.orders)
	}
	return w.most(t), nil
}

// awaitOrders waits until the programs, which must not end meanwhile, have placed n orders.
func (s *space) awaitOrders(t *testing.T, all []*process, n int) error {
	t.Helper()
	for deadline := time.Now().Add(patience); s.orders(t) < n; time.Sleep(5 * time.Millisecond) {
		for _, p := range all {
			if !p.running() {
				return p.failed()
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d orders in %v:\n%s", s.orders(t), n, patience,
				all[0].out.String())
		}
	}
	return nil
}

// test runs the fleet under its cap, and then under one that it does not need. See holds.
func (f *fleet) test(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	if f.setUp != nil {
		must(t, s.spawn(t, f.setUp[0], nil, f.setUp[1:]...).wait())
	}
	s.holds(t, semaphoreName, capacity+f.extra, func() (int, error) { return f.run(t, s) })
	s.nothingLeft(t, semaphoreName)
}

// holds fails unless what run counts comes up to n and never exceeds it. Then the cap is lifted, and
// it fails unless the count exceeds n: otherwise the cap was not needed, and the first runs have
// proven nothing. One less than n is enough: a pool leaves the last connection unopened where its
// own next return comes sooner than a connect would.
//
// On a starved machine a program can lose its leases, or the witness look too late. So a run that
// ends in errStarved, or proves nothing, is repeated. One that exceeds the cap is not.
func (s *space) holds(t *testing.T, name string, n int, run func() (int, error)) {
	t.Helper()
	repeat := func(what string, proven func(got int) bool) {
		t.Helper()
		for try := 1; ; try++ {
			got, err := run()
			if !errors.Is(err, errStarved) {
				must(t, err)
			}
			switch {
			case err == nil && proven(got):
				return
			case try == tries:
				t.Fatalf("%s: %d at once, capacity %d (%v)", what, got, n, err)
			}
			t.Logf("%s: %d at once, capacity %d (%v): once more", what, got, n, err)
		}
	}
	repeat("under the cap", func(got int) bool {
		if got > n {
			t.Fatalf("%d at once, capacity %d", got, n)
		}
		return got >= max(1, n-1)
	})
	must(t, s.inspector(t, name).SetCapacity(t.Context(), 100)) // more than the programs can use
	repeat("without a cap", func(got int) bool { return got > n })
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

// backends counts the backends whose application_name is one of those.
func (s *space) backends(t *testing.T, names ...string) (n int) {
	t.Helper()
	must(t, s.admin.QueryRow(t.Context(), `select count(*) from pg_stat_activity
		where datname = $1 and application_name = any($2)`, s.database, names).Scan(&n))
	return n
}
