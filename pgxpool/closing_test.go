package pgxpool_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
)

// closedPool returns pgx's error for a closed pool.
func (f *fleet) closedPool(t *testing.T) error {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(ctxb, f.config(""))
	ok(t, err)
	pool.Close()
	_, err = pool.Acquire(ctxb)
	return err
}

// told fails the test unless a caller that Close wakes or refuses gets want. The bound is far below
// AcquireTimeout.
func told(t *testing.T, got <-chan error, want error) {
	t.Helper()
	select {
	case err := <-got:
		if err != want {
			t.Errorf("the caller is told %v, want %v", err, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the caller still waits")
	}
}

func asks(pool *pgxpool.Pool) <-chan error {
	got := make(chan error, 1)
	go func() {
		c, err := pool.Acquire(ctxb)
		if err == nil {
			c.Release()
		}
		got <- err
	}()
	return got
}

// TestClosedPool: a call on a closed pool, and each caller that waits when it closes, gets pgx's
// error at once. No connection is opened any more.
func TestClosedPool(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		opts := passbuddy.Config{Scope: scope}
		run := func(name string, test func(t *testing.T, f *fleet, want error)) {
			t.Run(scope.String()+"/"+name, func(t *testing.T) {
				f := newFleet(t, 2)
				test(t, f, f.closedPool(t))
			})
		}
		// taken lets another process hold all permits.
		taken := func(t *testing.T, f *fleet) {
			other := f.process(opts)
			for range f.capacity {
				c, err := other.Acquire(ctxb)
				ok(t, err)
				t.Cleanup(c.Release)
			}
		}
		run("never used", func(t *testing.T, f *fleet, want error) {
			taken(t, f)
			pool := f.process(opts)
			pool.Close()
			told(t, asks(pool), want)
		})
		run("waits for a permit, first use", func(t *testing.T, f *fleet, want error) {
			taken(t, f)
			pool := f.process(opts)
			a, b := asks(pool), asks(pool)
			eventually(t, "both wait", func() bool { return passpool.Figures(pool).Waiting == 2 })
			pool.Close()
			told(t, a, want)
			told(t, b, want)
		})
		run("waits for a permit, used before", func(t *testing.T, f *fleet, want error) {
			pool := f.process(opts)
			ok(t, pool.Ping(ctxb))
			taken(t, f)
			if scope == passbuddy.PerConnection {
				eventually(t, "it has given its connection back", func() bool {
					return passpool.Figures(pool).Owned == 0
				})
			}
			a := asks(pool)
			eventually(t, "it waits", func() bool { return passpool.Figures(pool).Waiting == 1 })
			pool.Close()
			told(t, a, want)
		})
		run("waits for its own connections", func(t *testing.T, f *fleet, want error) {
			pool := f.process(opts, func(cfg *pgxpool.Config) { cfg.MaxConns = 2 })
			var out []*pgxpool.Conn
			for range 2 {
				c, err := pool.Acquire(ctxb)
				ok(t, err)
				out = append(out, c)
			}
			a, b := asks(pool), asks(pool)
			eventually(t, "both wait", func() bool { return passpool.Figures(pool).Waiting == 2 })
			closed := make(chan struct{})
			go func() { pool.Close(); close(closed) }()
			told(t, a, want)
			told(t, b, want)
			told(t, asks(pool), want)
			for _, c := range out {
				// a caller that has a connection keeps it
				if _, err := c.Exec(ctxb, "select 1"); err != nil {
					t.Error(err)
				}
				c.Release()
			}
			<-closed
			eventually(t, "nothing is open", func() bool { return f.backends() == 0 })
		})
		run("opened in the background", func(t *testing.T, f *fleet, want error) {
			pool := f.process(opts, func(cfg *pgxpool.Config) { cfg.MinConns = 2 })
			eventually(t, "both are open", func() bool { return pool.Stat().IdleConns() == 2 })
			taken(t, f)
			a := asks(pool)
			eventually(t, "it waits", func() bool { return passpool.Figures(pool).Waiting == 1 })
			pool.Close()
			told(t, a, want)
		})
		run("another pool of the same configuration", func(t *testing.T, f *fleet, want error) {
			cfg := f.config("")
			sem := f.semaphore()
			ok(t, passpool.Configure(cfg, sem, opts))
			for range 3 {
				pool, err := pgxpool.NewWithConfig(ctxb, cfg)
				ok(t, err)
				ok(t, pool.Ping(ctxb))
				hold, err := pool.Acquire(ctxb)
				ok(t, err)
				more, err := pool.Acquire(ctxb)
				ok(t, err)
				a := asks(pool)
				eventually(t, "it waits", func() bool {
					return passpool.Figures(pool).Waiting == 1
				})
				closed := make(chan struct{})
				go func() { pool.Close(); close(closed) }()
				told(t, a, want)
				hold.Release()
				more.Release()
				<-closed
			}
		})
		run("not of another pool that lives", func(t *testing.T, f *fleet, want error) {
			cfg := f.config("")
			ok(t, passpool.Configure(cfg, f.semaphore(), opts))
			var pools [2]*pgxpool.Pool
			for i := range pools {
				pool, err := pgxpool.NewWithConfig(ctxb, cfg)
				ok(t, err)
				ok(t, pool.Ping(ctxb))
				pools[i] = pool
			}
			hold, err := pools[0].Acquire(ctxb)
			ok(t, err)
			more, err := pools[0].Acquire(ctxb)
			ok(t, err)
			a, b := asks(pools[0]), asks(pools[1])
			eventually(t, "both wait", func() bool {
				return passpool.Figures(pools[0]).Waiting == 2
			})
			pools[1].Close()
			told(t, b, want)
			more.Release()
			hold.Release()
			told(t, a, nil)
			pools[0].Close()
		})
	}
}

// TestCloseWhileOpening: a caller whose connection opens while its pool closes fails, and leaves
// nothing behind.
func TestCloseWhileOpening(t *testing.T) {
	f := newFleet(t, 2)
	want := f.closedPool(t)
	dialling := make(chan struct{})
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
		dial := cfg.ConnConfig.DialFunc
		cfg.ConnConfig.DialFunc = func(ctx context.Context, network,
			address string) (net.Conn, error) {
			close(dialling)
			<-ctx.Done()
			return dial(ctx, network, address)
		}
	})
	a := asks(pool)
	<-dialling
	pool.Close()
	if err := <-a; err == nil || !errors.Is(err, context.Canceled) && !errors.Is(err, want) {
		t.Errorf("the caller is told %v, want its own cancellation or the pool's close", err)
	}
	eventually(t, "nothing is open or held", func() bool {
		return passpool.Figures(pool).Owned == 0 && f.backends() == 0
	})
}
