package pgxpool_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The servers of this package's tests: one of each, started at the first use. Every test uses names
// of its own.
var (
	startPostgres = sync.OnceValues(func() (*throwaway.Postgres, error) {
		return throwaway.StartPostgres(context.Background(), throwaway.PostgresOptions{})
	})
	startRedis = sync.OnceValues(func() (*throwaway.Redis, error) {
		return throwaway.StartRedis(context.Background(), throwaway.RedisOptions{})
	})
	started atomic.Bool
)

func TestMain(m *testing.M) {
	code := m.Run()
	if started.Load() {
		if pg, err := startPostgres(); err == nil {
			_ = pg.Stop()
		}
		if rd, err := startRedis(); err == nil {
			_ = rd.Stop()
		}
	}
	if code == 0 {
		known := goleak.IgnoreAnyFunction("os/exec.(*Cmd).Start.func2")
		err := goleak.Find(known)
		// It gives goroutines a second to end. A busy machine may need more, and a connection that
		// it put in doubt while its pool was closed needs 15 s.
		for range 29 {
			if err == nil {
				break
			}
			err = goleak.Find(known)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "leaked:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func servers(t testing.TB) (*throwaway.Postgres, *throwaway.Redis) {
	t.Helper()
	started.Store(true)
	pg, err := startPostgres()
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("needs a PostgreSQL server: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	rd, err := startRedis()
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("needs a Redis server: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pg, rd
}

// fleet simulates several processes in this one: each has a session and a pool of its own.
type fleet struct {
	t        testing.TB
	pg       *throwaway.Postgres
	rd       *throwaway.Redis
	name     string
	capacity int
	admin    *pgx.Conn
}

var fleets atomic.Int32

func newFleet(t testing.TB, capacity int) *fleet {
	t.Helper()
	pg, rd := servers(t)
	admin, err := pgx.Connect(context.Background(), pg.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close(context.Background()) })
	return &fleet{t: t, pg: pg, rd: rd, admin: admin, capacity: capacity,
		name: fmt.Sprintf("fleet%d", fleets.Add(1))}
}

// semaphore opens a session of one process, and closes it after the test. Its leases are long: a
// machine that stalls for some seconds must not lose one that no test wants to lose.
func (f *fleet) semaphore(change ...func(*semaphore.Config)) *semaphore.Semaphore {
	f.t.Helper()
	cfg := semaphore.Config{
		Name: f.name, Capacity: f.capacity, TTL: time.Minute, RetryInterval: 2 * time.Second,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	sem, err := semaphore.Open(context.Background(), f.rd.URL(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { sem.Close() })
	return sem
}

func (f *fleet) config(url string) *pgxpool.Config {
	f.t.Helper()
	if url == "" {
		url = f.pg.URL()
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		f.t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = f.name
	cfg.MaxConns = 20
	return cfg
}

// process adds a process with a session and a pool, and closes both after the test.
func (f *fleet) process(opts passbuddy.Config, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	f.t.Helper()
	return f.pool(f.semaphore(), opts, change...)
}

func (f *fleet) pool(sem *semaphore.Semaphore, opts passbuddy.Config,
	change ...func(*pgxpool.Config)) *pgxpool.Pool {
	f.t.Helper()
	cfg := f.config("")
	for _, c := range change {
		c(cfg)
	}
	pool, err := passpool.NewWithConfig(context.Background(), cfg, sem, opts)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(pool.Close)
	return pool
}

// backends counts the fleet's backends, as the server sees them.
func (f *fleet) backends() int {
	f.t.Helper()
	var n int
	err := f.admin.QueryRow(context.Background(),
		"select count(*) from pg_stat_activity where application_name = $1", f.name).Scan(&n)
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// eventually polls until the state of the server or the engine, which sends no signal, is as
// wanted.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	var waited time.Duration
	for began := time.Now(); !holds(); began = time.Now() {
		if waited > 10*time.Second {
			t.Fatalf("not within 10s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
		waited += min(time.Since(began), time.Second/2) // however long the machine stalled
	}
}

// patience returns a context that ends after limit. A machine that stalls does not use it up: a
// stall counts as 10 ms, however long it is.
func patience(limit time.Duration) (context.Context, context.CancelFunc) {
	const tick = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(ctxb)
	go func() {
		defer cancel()
		for range limit / tick {
			select {
			case <-time.After(tick):
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}

// refused calls use, which the fleet must refuse, with a context that ends soon. On a slow machine
// the context can end before Redis has said that the fleet is full. Then the error does not match
// ErrCapacity, and refused calls use again, with more time.
func refused(use func(ctx context.Context) error) error {
	for limit := 20 * time.Millisecond; ; limit *= 5 {
		ctx, cancel := context.WithTimeout(ctxb, limit)
		err := use(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, semaphore.ErrCapacity) ||
			limit > 10*time.Second {
			return err
		}
	}
}

// witness samples the number of backends until the caller calls the returned function, which
// returns the peak.
func (f *fleet) witness() (peak func() int) {
	f.t.Helper()
	conn, err := pgx.Connect(context.Background(), f.pg.AdminURL())
	if err != nil {
		f.t.Fatal(err)
	}
	stop, result := make(chan struct{}), make(chan int)
	go func() {
		defer conn.Close(context.Background())
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		most, samples := 0, 0
		for {
			var n int
			err := conn.QueryRow(context.Background(),
				"select count(*) from pg_stat_activity where application_name = $1",
				f.name).Scan(&n)
			if err != nil {
				f.t.Error("witness: ", err)
			}
			most, samples = max(most, n), samples+1
			select {
			case <-stop:
				f.t.Logf("peak of %d backends in %d samples, cap %d", most, samples, f.capacity)
				result <- most
				return
			case <-ticker.C:
			}
		}
	}()
	return sync.OnceValue(func() int { close(stop); return <-result })
}

// settled checks that nothing is left behind: no backend, and no permit in Redis.
func (f *fleet) settled(sem *semaphore.Semaphore) {
	f.t.Helper()
	eventually(f.t, "no backend and no permit is left", func() bool {
		snap, err := sem.Snapshot(context.Background())
		if err != nil {
			f.t.Fatal(err)
		}
		return snap.Held == 0 && len(snap.Waiters) == 0 && f.backends() == 0
	})
}

func pgconnTimeout(err error) bool {
	return pgconn.Timeout(err)
}
