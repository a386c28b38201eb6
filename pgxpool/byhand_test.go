package pgxpool_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// TestOpenedByHand: connections that the user opens with the configuration of a pool, or of one of
// its connections, count.
func TestOpenedByHand(t *testing.T) {
	t.Parallel() // it mostly waits
	for name, opts := range map[string]passbuddy.Config{
		"PerConnection": {},
		"PerCheckout":   {Scope: passbuddy.PerCheckout},
		"Fence":         {Fence: true},
	} {
		t.Run(name, func(t *testing.T) {
			const capacity = 5
			t.Parallel()
			f := newFleet(t, capacity)
			opts.AcquireTimeout = 300 * time.Millisecond
			// served tries again: on a slow machine AcquireTimeout can end before the fleet has
			// answered.
			served := func(try func() error) {
				t.Helper()
				eventually(t, "a connection", func() bool { return try() == nil })
			}
			pool := f.process(opts, func(cfg *pgxpool.Config) { cfg.MaxConns = 3 })
			db := stdlib.OpenDB(*pool.Config().ConnConfig)
			var out []*sql.Conn
			for range capacity - 1 { // before the first use of the pool, and more than MaxConns
				served(func() error {
					c, err := db.Conn(ctxb)
					if err == nil {
						out = append(out, c)
					}
					return err
				})
			}
			var conn *pgxpool.Conn
			served(func() (err error) { conn, err = pool.Acquire(ctxb); return err })
			if _, err := db.Conn(ctxb); !errors.Is(err, semaphore.ErrCapacity) {
				t.Errorf("stdlib.OpenDB: %v", err)
			}
			for _, cfg := range []*pgx.ConnConfig{pool.Config().ConnConfig, conn.Conn().Config()} {
				if c, err := pgx.ConnectConfig(ctxb, cfg); !errors.Is(err, semaphore.ErrCapacity) {
					t.Errorf("pgx.ConnectConfig: %v, %v", c, err)
				}
			}
			if n := f.backends(); n != capacity {
				t.Errorf("%d backends, want %d", n, capacity)
			}
			conn.Release()
			// An idle connection of the pool gives its permit up.
			if opts.Scope == passbuddy.PerConnection {
				var listen *pgx.Conn
				served(func() (err error) {
					listen, err = pgx.ConnectConfig(ctxb, pool.Config().ConnConfig)
					return err
				})
				if n := f.backends(); n > capacity {
					t.Errorf("%d backends, want at most %d", n, capacity)
				}
				again, err := pgx.ConnectConfig(ctxb, listen.Config())
				if !errors.Is(err, semaphore.ErrCapacity) {
					t.Errorf("one connection more: %v, %v; want ErrCapacity", again, err)
				}
				ok(t, listen.Close(ctxb))
			}
			for _, c := range out {
				ok(t, c.Close())
			}
			ok(t, db.Close())
			eventually(t, "all permits are back", func() bool {
				got := passpool.Figures(pool)
				return got.Out == 0 && got.Leaving == 0 && got.Turns == 0
			})
			served(func() error { return pool.Ping(ctxb) })
		})
	}
}

// TestFailsByHand: a failed attempt by hand leaves nothing behind.
func TestFailsByHand(t *testing.T) {
	t.Parallel() // it mostly waits
	f := newFleet(t, 1)
	refuse := errors.New("refused")
	for name, change := range map[string]func(*pgx.ConnConfig){
		"password": func(cfg *pgx.ConnConfig) { cfg.Password = "wrong" },
		"host":     func(cfg *pgx.ConnConfig) { cfg.LookupFunc = noSuchHost },
		"port":     func(cfg *pgx.ConnConfig) { cfg.Port = 1 },
		"AfterConnect": func(cfg *pgx.ConnConfig) {
			cfg.AfterConnect = func(context.Context, *pgconn.PgConn) error { return refuse }
		},
	} {
		t.Run(name, func(t *testing.T) {
			pool := f.process(passbuddy.Config{})
			cfg := pool.Config().ConnConfig
			change(cfg)
			for range 3 {
				if c, err := pgx.ConnectConfig(ctxb, cfg); err == nil {
					t.Errorf("connected: %v", c)
				} else if errors.Is(err, semaphore.ErrCapacity) {
					t.Error(err)
				}
			}
			eventually(t, "nothing is left", func() bool {
				return passpool.Figures(pool).Turns == 0
			})
			ok(t, pool.Ping(ctxb))
			pool.Close()
		})
	}
}
