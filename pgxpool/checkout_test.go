package pgxpool_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// inUse counts the callers between a checkout and its return.
type inUse struct{ now, peak atomic.Int64 }

func (u *inUse) query(t *testing.T, pool *pgxpool.Pool) {
	c, err := pool.Acquire(ctxb)
	if err != nil {
		t.Error(err)
		return
	}
	n := u.now.Add(1)
	for p := u.peak.Load(); n > p && !u.peak.CompareAndSwap(p, n); p = u.peak.Load() {
	}
	if _, err := c.Exec(ctxb, "select pg_sleep(0.002)"); err != nil {
		t.Error(err)
	}
	u.now.Add(-1)
	c.Release()
}

func TestPerCheckoutCapsUse(t *testing.T) {
	const capacity = 3
	hooked := func(f *fleet) *pgxpool.Pool {
		cfg := f.config("")
		hooks := passpool.NewHooks(f.semaphore(), passbuddy.Config{})
		cfg.PrepareConn, cfg.AfterRelease, cfg.BeforeClose =
			hooks.PrepareConn, hooks.AfterRelease, hooks.BeforeClose
		pool, err := pgxpool.NewWithConfig(ctxb, cfg)
		ok(t, err)
		t.Cleanup(pool.Close)
		return pool
	}
	for name, start := range map[string]func(f *fleet) *pgxpool.Pool{
		"Configure": func(f *fleet) *pgxpool.Pool {
			return f.process(passbuddy.Config{Scope: passbuddy.PerCheckout})
		},
		"NewHooks": hooked,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, capacity)
			watch := f.semaphore()
			var use inUse
			var wg sync.WaitGroup
			for range 3 {
				pool := start(f)
				for range 5 {
					wg.Go(func() {
						for range 20 {
							use.query(t, pool)
						}
					})
				}
			}
			wg.Wait()
			if p := use.peak.Load(); p > capacity || p < 2 {
				t.Errorf("%d at once at the peak, capacity %d", p, capacity)
			}
			eventually(t, "no permit is held", func() bool {
				snap, err := watch.Snapshot(ctxb)
				ok(t, err)
				return snap.Held == 0
			})
			if n := f.backends(); n == 0 {
				t.Error("idle connections should have stayed, without a permit")
			}
		})
	}
}

// TestPerCheckoutEnds: a cancelled query counts until its backend is gone, and a hijacked
// connection until it is closed.
func TestPerCheckoutEnds(t *testing.T) {
	f := newFleet(t, 1)
	pool := f.process(passbuddy.Config{Scope: passbuddy.PerCheckout})
	other := f.process(passbuddy.Config{Scope: passbuddy.PerCheckout})
	for name, end := range map[string]func(){
		"cancelled": func() {
			f.cancelsStatement(t, pool)
		},
		"hijacked": func() {
			c, err := pool.Acquire(ctxb)
			ok(t, err)
			conn := c.Hijack()
			if err := refused(other.Ping); !errors.Is(err, semaphore.ErrCapacity) {
				t.Error(err)
			}
			ok(t, conn.Close(ctxb))
		},
		"refused by the server": func() { _, _ = pool.Exec(ctxb, "nonsense") },
		"in a transaction":      func() { _, _ = pool.Exec(ctxb, "begin") },
		"AcquireAllIdle": func() {
			ok(t, pool.Ping(ctxb))
			for _, c := range pool.AcquireAllIdle(ctxb) {
				c.Release()
			}
		},
		"closed": func() {
			c, err := pool.Acquire(ctxb)
			ok(t, err)
			c.Conn().Close(ctxb)
			c.Release()
		},
	} {
		t.Run(name, func(t *testing.T) {
			end()
			f.works(other)
			eventually(t, "nothing is left", func() bool {
				return passpool.Figures(pool) == allotment.Figures{}
			})
		})
	}
}

func TestHooksEdges(t *testing.T) {
	if ok, err := passpool.NewHooks(nil, passbuddy.Config{}).PrepareConn(ctxb, nil); err == nil ||
		!ok {
		t.Error("a nil semaphore was accepted")
	}
	if passpool.NewHooks(nil, passbuddy.Config{}).BeforeAcquire(ctxb, nil) {
		t.Error("a nil semaphore was accepted")
	}
	f := newFleet(t, 1)
	hooks := passpool.NewHooks(f.semaphore(), passbuddy.Config{})
	cfg := f.config("")
	cfg.PrepareConn, cfg.AfterRelease, cfg.BeforeClose =
		hooks.PrepareConn, hooks.AfterRelease, hooks.BeforeClose
	pool, err := pgxpool.NewWithConfig(ctxb, cfg)
	ok(t, err)
	defer pool.Close()
	func() {
		c, err := pool.Acquire(ctxb)
		ok(t, err)
		if err := refused(pool.Ping); !errors.Is(err, semaphore.ErrCapacity) {
			t.Error(err)
		}
		_, _ = c.Exec(ctxb, "begin") // destroyed by the pool, without AfterRelease
		c.Release()
		f.works(pool)
		c, err = pool.Acquire(ctxb)
		ok(t, err)
		c.Hijack().Close(ctxb)
	}()
	eventually(t, "the hijacked connection is collected", func() bool {
		runtime.GC()
		ctx, cancel := context.WithTimeout(ctxb, 100*time.Millisecond)
		defer cancel()
		return pool.Ping(ctx) == nil
	})
}
