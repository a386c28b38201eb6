package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The tests' program is also a fleet's workers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == fleet.WorkerCommand {
		os.Exit(fleet.RunWorker())
	}
	goleak.VerifyTestMain(m)
}

// setup is a proxy under test, its Redis, and its log.
type setup struct {
	t     testing.TB
	redis *miniredis.Miniredis
	url   string // of Redis
	o     Options
	ttl   time.Duration
	cap   int
	// firstPacket is server.firstPacket; 0: as it is
	firstPacket time.Duration

	s    *server
	addr string
	log  *logged
	stop context.CancelFunc
	code chan int
}

// logged is a log.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a proxy before the server at to, with an embedded Redis.
func start(t testing.TB, to string, capacity int, change ...func(*setup)) *setup {
	t.Helper()
	p := &setup{t: t, cap: capacity, log: &logged{}, code: make(chan int, 1)}
	p.o = Options{
		Target: target.Target{Prefix: semaphore.DefaultPrefix, Name: semaphore.DefaultName},
		Listen: "127.0.0.1:0", To: to, Wait: 10 * time.Second, MaxClients: 1000,
		StopTimeout: patience, Verbose: true,
	}
	for _, f := range change {
		f(p)
	}
	if p.ttl == 0 {
		p.ttl = time.Minute // no lease is lost on a machine that starves
	}
	if p.url == "" {
		p.redis = miniredis.RunT(t)
		p.url = "redis://" + p.redis.Addr()
	}
	if err := p.o.resolve(); err != nil {
		t.Fatal(err)
	}
	log := newLog(p.log, p.o)
	sem := p.join(log)
	listener, err := net.Listen("tcp", p.o.Listen)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.addr = cancel, listener.Addr().String()
	if p.s, err = newServer(ctx, p.o, log, sem, listener); err != nil {
		t.Fatal(err)
	}
	if p.firstPacket > 0 {
		p.s.firstPacket = p.firstPacket
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code, err := p.s.run()
		if err != nil {
			_, _ = fmt.Fprintln(p.log, "ended:", err)
		}
		p.code <- code
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			t.Logf("the proxy's log:\n%s", p.log)
		}
	})
	return p
}

// join adds a session to the proxy's fleet.
func (p *setup) join(log *slog.Logger) *semaphore.Semaphore {
	p.t.Helper()
	sem, err := semaphore.Open(context.Background(), p.url, semaphore.Config{
		Name: p.o.Target.Name, Capacity: p.cap, TTL: p.ttl, Logger: log,
		Min: p.o.Min, Max: p.o.Max, Weight: p.o.Weight,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return sem
}

// other is the session of a Go process.
func (p *setup) other() *semaphore.Semaphore {
	sem := p.join(slog.New(slog.DiscardHandler))
	p.t.Cleanup(func() { _ = sem.Close() })
	return sem
}

// counts are the permits held and the requests that wait, as Redis has them.
func (p *setup) counts() (held, waiting int) {
	p.t.Helper()
	now, err := p.s.sem.Snapshot(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	return now.Held, len(now.Waiters)
}

// clientsWaiting is how many clients wait in the proxy.
func (p *setup) clientsWaiting() int { return p.s.ad.a.Figures().Waiting }

// settles waits for those counts.
func (p *setup) settles(held, waiting int) {
	p.t.Helper()
	eventually(p.t, patience, func() (bool, string) {
		h, _ := p.counts()
		w := p.clientsWaiting()
		return h == held && w == waiting,
			fmt.Sprintf("%d held and %d waiting, want %d and %d", h, w, held, waiting)
	})
}

// noticed waits until the proxy has noticed that a client has gone. It says so if it is verbose.
func (p *setup) noticed() {
	p.t.Helper()
	eventually(p.t, patience, func() (bool, string) {
		return strings.Contains(p.log.String(), "the client's side has ended"), "the proxy has not noticed"
	})
}

// connect connects pgx through the proxy.
func (p *setup) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("postgres://x@%s/x?sslmode=disable", p.addr))
	if err != nil {
		p.t.Fatal(err)
	}
	return pgx.ConnectConfig(ctx, cfg)
}

func (p *setup) mustConnect() *pgx.Conn {
	p.t.Helper()
	conn, err := p.connect(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// dial connects without a word.
func (p *setup) dial() *net.TCPConn {
	p.t.Helper()
	nc, err := net.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = nc.Close() })
	return nc.(*net.TCPConn)
}

// fake is a fake Postgres, and its address.
func fake(t testing.TB, s *fakepg.Server) string {
	return fmt.Sprintf("127.0.0.1:%d", s.Listen(t).Port)
}

// raw is a server that does what f says with each connection.
func raw(t testing.TB, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer nc.Close()
				f(nc)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

// refusedWith returns the error of the server, by its SQLSTATE.
func refusedWith(t testing.TB, err error, code string) *pgconn.PgError {
	t.Helper()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != code {
		t.Fatalf("%v, want SQLSTATE %s", err, code)
	}
	return pgErr
}

// closes waits until the other end closes, and returns what it sent before.
func closes(t testing.TB, nc net.Conn) []byte {
	t.Helper()
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(nc)
	if err != nil {
		t.Fatalf("%v, after %q", err, b)
	}
	return b
}

// patience is how long a test waits for what has to come. A slow machine takes its time.
const patience = time.Minute

// eventually fails unless ok becomes true in time. It asks ok once more after the limit: the
// machine may have stood still since the last time.
func eventually(t testing.TB, limit time.Duration, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		late := time.Now().After(deadline)
		yes, state := ok()
		if yes {
			return
		}
		if late {
			t.Fatalf("after %v: %s", limit, state)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
