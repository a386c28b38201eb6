package pgxpool_test

import (
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
)

// TestIdleGiveBack: all permits are idle in one process, and another wants one.
func TestIdleGiveBack(t *testing.T) {
	for _, capacity := range []int{1, 5} {
		f := newFleet(t, capacity)
		peak := f.witness()
		pools := []*pgxpool.Pool{f.process(passbuddy.Config{}), f.process(passbuddy.Config{})}
		fill(t, pools[0], capacity)
		if n := f.backends(); n != capacity {
			t.Fatalf("%d backends, want %d idle ones", n, capacity)
		}
		for i := range 6 {
			start := time.Now()
			f.works(pools[(i+1)%2])
			t.Logf("capacity %d: first query of the other process after %v", capacity,
				time.Since(start))
			// The time depends on the cost of moves on this machine. internal/allotment tests a
			// bound, in fake time.
			if capacity > 1 {
				break
			}
		}
		if p := peak(); p > capacity {
			t.Errorf("%d backends at the peak, want at most %d", p, capacity)
		}
		// The pool itself destroyed the connections that it gave back, so pgx counts none of them.
		eventually(t, "both pools know what they have", func() bool {
			return int(pools[0].Stat().TotalConns()+pools[1].Stat().TotalConns()) == f.backends()
		})
	}
}

// fill makes n connections of a pool and leaves them idle.
func fill(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	for range n {
		c, err := pool.Acquire(ctxb)
		ok(t, err)
		defer c.Release()
	}
}

// TestProgress: capacity 1, first two goroutines in one process, then in two.
func TestProgress(t *testing.T) {
	f := newFleet(t, 1)
	peak := f.witness()
	a, b := f.process(passbuddy.Config{}), f.process(passbuddy.Config{})
	for name, pools := range map[string][2]*pgxpool.Pool{"one process": {a, a},
		"two processes": {a, b}} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			for _, pool := range pools {
				wg.Go(func() {
					for range 20 {
						mixedQuery(ctxb, t, pool)
					}
				})
			}
			wg.Wait()
		})
	}
	if p := peak(); p > 1 {
		t.Errorf("%d backends, want at most 1", p)
	}
}

// TestEvictionBeforeFirstCheckout: Configure does not see the pool, and MinConns opened connections
// before the first checkout.
func TestEvictionBeforeFirstCheckout(t *testing.T) {
	f := newFleet(t, 2)
	cfg := f.config("")
	cfg.MinConns = 2
	ok(t, passpool.Configure(cfg, f.semaphore(), passbuddy.Config{}))
	pool, err := pgxpool.NewWithConfig(ctxb, cfg)
	ok(t, err)
	defer pool.Close()
	eventually(t, "the pool is warm", func() bool { return passpool.Figures(pool).Idle == 2 })
	other := f.process(passbuddy.Config{})
	f.works(other)
	f.works(pool) // the pool finds the connection that was closed in place
}

// TestMinConnsOnlyTries: at capacity, background connections are refused and callers are not.
func TestMinConnsOnlyTries(t *testing.T) {
	f := newFleet(t, 2)
	peak := f.witness()
	first := f.process(passbuddy.Config{})
	c, err := first.Acquire(ctxb)
	ok(t, err)
	defer c.Release()
	min := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
		cfg.MinConns, cfg.HealthCheckPeriod = 5, 20*time.Millisecond
		cfg.MaxConnIdleTime = 50 * time.Millisecond
	})
	eventually(t, "MinConns has what is free", func() bool {
		return passpool.Figures(min).Idle == 1
	})
	for range 5 {
		f.works(first)
		f.works(min)
	}
	if p := peak(); p > 2 {
		t.Errorf("%d backends at the peak, want at most 2", p)
	}
}

// TestIdleTimeWithoutMinIdle: a MinIdleConns that cannot be met does not keep old connections
// alive.
func TestIdleTimeWithoutMinIdle(t *testing.T) {
	f := newFleet(t, 3)
	hold, err := f.process(passbuddy.Config{}).Acquire(ctxb)
	ok(t, err)
	defer hold.Release()
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
		cfg.MinIdleConns, cfg.HealthCheckPeriod = 3, 10*time.Millisecond
		cfg.MaxConnIdleTime = 30 * time.Millisecond
	})
	seen := map[uint32]bool{}
	eventually(t, "idle connections are replaced", func() bool {
		if c, err := pool.Acquire(ctxb); err == nil {
			seen[c.Conn().PgConn().PID()] = true
			c.Release()
		}
		time.Sleep(100 * time.Millisecond)
		return len(seen) >= 3
	})
}
