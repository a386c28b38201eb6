package pgxpool_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// TestLeaseLost takes Redis away for longer than the lease.
func TestLeaseLost(t *testing.T) {
	const ttl = time.Second
	for name, c := range map[string]struct {
		opts passbuddy.Config
		keep bool
	}{
		"abort":         {opts: passbuddy.Config{}},
		"KeepOnLoss":    {opts: passbuddy.Config{KeepOnLoss: true}, keep: true},
		"FallbackConns": {opts: passbuddy.Config{FallbackConns: 3}, keep: true},
		"PerCheckout":   {opts: passbuddy.Config{Scope: passbuddy.PerCheckout}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			f := newFleet(t, 3)
			rd, err := throwaway.StartRedis(ctxb, throwaway.RedisOptions{})
			ok(t, err)
			t.Cleanup(func() { _ = rd.Stop() })
			sem, err := semaphore.Open(ctxb, rd.URL(), semaphore.Config{
				Name: f.name, Capacity: 3, TTL: ttl,
				Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			})
			ok(t, err)
			// after the pool's Close, which waits for the pool's connections
			t.Cleanup(func() { _ = sem.Close() })
			c.opts.AcquireTimeout = 300 * time.Millisecond
			pool := f.pool(sem, c.opts)
			// A machine that stalls now loses leases of a second, and misses AcquireTimeout.
			take := func() (c *pgxpool.Conn) {
				eventually(t, "a connection", func() bool {
					c, err = pool.Acquire(ctxb)
					return err == nil
				})
				return c
			}
			conn, idle := take(), take()
			idle.Release()
			busy := make(chan error)
			query := "select pg_sleep(60)" // must be ended
			if c.keep {
				query = "select pg_sleep(3)" // must end by itself, after the lease
			}
			go func() {
				_, err := conn.Exec(ctxb, query)
				conn.Release()
				busy <- err
			}()
			rd.Kill()
			// internal/core tests in fake time that a loss is noticed within the lease.
			within, cancel := context.WithCancel(ctxb)
			if !c.keep {
				within, cancel = patience(ttl + time.Second)
			}
			defer cancel()
			select {
			case err = <-busy:
			case <-within.Done():
				t.Error("the query goes on without a lease")
				err = <-busy
			}
			if !c.keep && !errors.Is(err, semaphore.ErrLost) {
				t.Errorf("the query's error does not name the lost lease: %v", err)
			}
			if c.keep != (err == nil) {
				t.Errorf("the query: %v", err)
			}
			if !c.keep {
				if c.opts.Scope == passbuddy.PerConnection {
					eventually(t, "no backend is left", func() bool { return f.backends() == 0 })
				}
				if err := pool.Ping(ctxb); !errors.Is(err, semaphore.ErrUnavailable) {
					t.Error(err)
				}
			} else {
				ok(t, pool.Ping(ctxb))
				if n := f.backends(); n > 3 {
					t.Errorf("%d backends, want at most 3", n)
				}
			}
			ok(t, rd.Restart(ctxb))
			// Redis grants no new permit before every holder had time to come back. Uncounted
			// connections get permits or are replaced.
			eventually(t, "all of the capacity can be had again, and is counted", func() bool {
				for range 3 {
					c, err := pool.Acquire(ctxb)
					if err != nil {
						return false
					}
					defer c.Release()
				}
				snap, err := sem.Snapshot(ctxb)
				return err == nil && snap.Held == 3 && f.backends() == 3
			})
		})
	}
}

// TestSemaphoreCloses: connections end with the semaphore, even those that are checked out.
func TestSemaphoreCloses(t *testing.T) {
	f := newFleet(t, 3)
	sem := f.semaphore()
	pool := f.pool(sem, passbuddy.Config{}, func(cfg *pgxpool.Config) {})
	fill(t, pool, 2)
	c, err := pool.Acquire(ctxb)
	ok(t, err)
	done := make(chan error)
	go func() {
		_, err := c.Exec(ctxb, "select pg_sleep(60)")
		c.Release()
		done <- err
	}()
	eventually(t, "the query runs", func() bool { return passpool.Figures(pool).Out == 1 })
	ok(t, sem.Close())
	if err := <-done; !errors.Is(err, semaphore.ErrClosed) {
		t.Errorf("the query went on, or its error does not name the reason: %v", err)
	}
	eventually(t, "no backend is left", func() bool { return f.backends() == 0 })
	if err := pool.Ping(ctxb); !errors.Is(err, semaphore.ErrClosed) {
		t.Error(err)
	}
}
