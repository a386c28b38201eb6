package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/subset"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The cost of an idle connection to this process, in bare pools and in PassBuddy's: bytes of heap,
// and goroutines. The figure is the growth of one pool from few idle connections to many. So the
// fixed cost of a pool and a session does not count.
func BenchmarkIdleConnection(b *testing.B) {
	const few, many = 20, 180
	s := startServers(b, many+20)
	for _, kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			var bytes, goroutines [3][]float64
			for range b.N {
				for range 3 { // side by side
					for i, opts := range []*passbuddy.Config{nil, {}, {Fence: true}} {
						var at []footprint
						s.withIdle(b, kind, opts, []int{few, many}, func() {
							at = append(at, measureFootprint())
						})
						bytes[i] = append(bytes[i], (at[1].bytes-at[0].bytes)/(many-few))
						goroutines[i] = append(goroutines[i],
							(at[1].goroutines-at[0].goroutines)/(many-few))
					}
				}
			}
			bare, ours, fenced := quantile(bytes[0], 0.5), quantile(bytes[1], 0.5),
				quantile(bytes[2], 0.5)
			b.ReportMetric(bare, "bare-B/conn")
			b.ReportMetric(ours, "passbuddy-B/conn")
			b.ReportMetric(ours-bare, "more-B/conn")
			b.ReportMetric(fenced-bare, "more-with-Fence-B/conn")
			b.ReportMetric(quantile(goroutines[0], 0.5), "bare-goroutines/conn")
			b.ReportMetric(quantile(goroutines[1], 0.5), "passbuddy-goroutines/conn")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// PassBuddy forgets closed connections, whether their pool lives on or not.
func TestClosedConnectionsAreCollected(t *testing.T) {
	const connections, rounds = 40, 2
	s := startServers(t, 100)
	for _, kind := range subset.Of(t, 1, kinds) {
		t.Run(kind, func(t *testing.T) {
			round := func() {
				s.withIdle(t, kind, &passbuddy.Config{Fence: true}, []int{connections}, func() {})
			}
			round() // creates all that is created once
			before := measureFootprint()
			for range rounds {
				round()
			}
			const each = 10 << 10 // A connection of pgx has some 70 KiB.
			eventually(t, time.Minute, func() (bool, string) {
				after := measureFootprint()
				bytes := (after.bytes - before.bytes) / (connections * rounds)
				goroutines := after.goroutines - before.goroutines
				return bytes <= each && goroutines <= connections/2, fmt.Sprintf(
					"%.0f bytes are left of each connection that was closed, want no more than %d; "+
						"%.0f goroutines are left of %d connections",
					bytes, each, goroutines, connections*rounds)
			})
		})
	}
}

type footprint struct{ bytes, goroutines float64 }

// measureFootprint takes the least of some samples, because background work only adds.
func measureFootprint() footprint {
	var least footprint
	for i := range 5 {
		time.Sleep(50 * time.Millisecond)
		runtime.GC()
		runtime.GC() // An object in a sync.Pool survives one collection.
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		f := footprint{float64(m.HeapAlloc), float64(runtime.NumGoroutine())}
		if i == 0 {
			least = f
		}
		least.bytes, least.goroutines = min(least.bytes, f.bytes),
			min(least.goroutines, f.goroutines)
	}
	return least
}

// withIdle fills a pool with each of the numbers of used, idle connections, and then calls f. The
// pool is a bare one if opts is nil. The numbers must rise.
func (s *servers) withIdle(
	t testing.TB, kind string, opts *passbuddy.Config, numbers []int, f func(),
) {
	t.Helper()
	most := numbers[len(numbers)-1]
	var sem *semaphore.Semaphore
	if opts != nil {
		var err error
		if sem, err = semaphore.Open(t.Context(), s.redis.URL(), semaphore.Config{Name: t.Name(),
			Capacity: most, TTL: time.Minute}); err != nil {
			t.Fatal(err)
		}
		defer sem.Close()
	}
	checkOut, idle, end := s.idlePool(t, kind, sem, opts, most)
	defer end()
	for _, n := range numbers {
		together(t, n, checkOut)
		eventually(t, time.Minute, func() (bool, string) { // pgxpool takes them back beside us
			got := idle()
			return got == n, fmt.Sprintf("%d connections are idle, want %d", got, n)
		})
		f()
	}
}

// checkOut checks a connection out, calls out, uses the connection, and returns it.
type checkOut func(ctx context.Context, out func()) error

// idleDB opens a DB, a bare one if sem is nil. The DB may have that many connections, and keeps as
// many idle.
func (s *servers) idleDB(
	t testing.TB, sem *semaphore.Semaphore, opts *passbuddy.Config, most int,
) (db *sql.DB) {
	t.Helper()
	if sem != nil {
		db = openDB(t, s.postgres.URL(), sem, *opts)
	} else {
		var err error
		if db, err = sql.Open("pgx", s.postgres.URL()); err != nil {
			t.Fatal(err)
		}
	}
	db.SetMaxOpenConns(most)
	db.SetMaxIdleConns(most)
	return db
}

// pgxPool is idleDB for pgxpool.
func (s *servers) pgxPool(
	t testing.TB, sem *semaphore.Semaphore, opts *passbuddy.Config, most int,
) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = int32(most)
	if sem != nil {
		if err := passpool.Configure(cfg, sem, *opts); err != nil {
			t.Fatal(err)
		}
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// idlePool opens one of the two, and returns how to use it.
func (s *servers) idlePool(t testing.TB, kind string, sem *semaphore.Semaphore,
	opts *passbuddy.Config, most int) (
	use checkOut, idle func() int, end func(),
) {
	t.Helper()
	if kind == "sql" {
		db := s.idleDB(t, sem, opts, most)
		use = func(ctx context.Context, out func()) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			out()
			_, err = c.ExecContext(ctx, "select 1")
			return err
		}
		return use, func() int { return db.Stats().Idle }, func() { _ = db.Close() }
	}
	pool := s.pgxPool(t, sem, opts, most)
	use = func(ctx context.Context, out func()) error {
		c, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer c.Release()
		out()
		_, err = c.Exec(ctx, "select 1")
		return err
	}
	return use, func() int { return int(pool.Stat().IdleConns()) }, pool.Close
}

// together has n connections checked out at once: each waits until all others are checked out.
func together(t testing.TB, n int, use checkOut) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all, wg sync.WaitGroup
	all.Add(n)
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			out := sync.OnceFunc(all.Done)
			errs[i] = use(ctx, func() { out(); all.Wait() })
			out() // One that fails must not block the others.
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
