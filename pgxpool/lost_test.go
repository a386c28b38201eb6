package pgxpool_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// copySource makes rows until the copy fails. CopyFrom checks for a failure after every 64 KB.
type copySource struct{}

var copiedRow = strings.Repeat("x", 1000)

func (copySource) Next() bool             { time.Sleep(time.Millisecond); return true }
func (copySource) Values() ([]any, error) { return []any{copiedRow}, nil }
func (copySource) Err() error             { return nil }

// TestLostLeaseIsNamed takes Redis away for longer than the lease. The call that runs on a
// connection, and the next one on it, fail with an error that matches ErrLost.
func TestLostLeaseIsNamed(t *testing.T) {
	t.Parallel() // it mostly waits
	running := map[string]func(conn *pgx.Conn) error{
		"Exec": func(conn *pgx.Conn) error {
			_, err := conn.Exec(ctxb, "select pg_sleep(60)")
			return err
		},
		"Exec with args": func(conn *pgx.Conn) error {
			_, err := conn.Exec(ctxb, "select pg_sleep($1)", 60)
			return err
		},
		"QueryRow": func(conn *pgx.Conn) error {
			return conn.QueryRow(ctxb, "select pg_sleep(60)::text").Scan(new(string))
		},
		"rows": func(conn *pgx.Conn) error {
			rows, err := conn.Query(ctxb, "select pg_sleep(0.01) from generate_series(1, 10000)")
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			return rows.Err()
		},
		"batch": func(conn *pgx.Conn) error {
			b := new(pgx.Batch)
			b.Queue("select 1")
			b.Queue("select pg_sleep(60)")
			return conn.SendBatch(ctxb, b).Close()
		},
		"CopyFrom": func(conn *pgx.Conn) error {
			if _, err := conn.Exec(ctxb, "create temporary table copied (row text)"); err != nil {
				return err
			}
			_, err := conn.CopyFrom(ctxb, pgx.Identifier{"copied"}, []string{"row"}, copySource{})
			return err
		},
		"notification": func(conn *pgx.Conn) error {
			_, err := conn.WaitForNotification(ctxb)
			return err
		},
	}
	after := map[string]func(ctx context.Context, tx pgx.Tx) error{
		"Tx.Exec": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "select 1")
			return err
		},
		"Tx.Query": func(ctx context.Context, tx pgx.Tx) error {
			return tx.QueryRow(ctx, "select 1").Scan(new(int))
		},
		"Tx.Commit": func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
	}
	for name, scope := range map[string]passbuddy.Scope{
		"PerConnection": passbuddy.PerConnection,
		"PerCheckout":   passbuddy.PerCheckout,
		"TLS":           passbuddy.PerConnection,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			f := newFleet(t, len(running)+len(after))
			rd, err := throwaway.StartRedis(ctxb, throwaway.RedisOptions{})
			ok(t, err)
			t.Cleanup(func() { _ = rd.Stop() })
			sem, err := semaphore.Open(ctxb, rd.URL(), semaphore.Config{
				Name: f.name, Capacity: f.capacity, TTL: time.Second,
				Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			})
			ok(t, err)
			// after the pool's Close, which waits for the pool's connections
			t.Cleanup(func() { _ = sem.Close() })
			pool := f.pool(sem, passbuddy.Config{Scope: scope}, func(cfg *pgxpool.Config) {
				if name == "TLS" {
					cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", uint16(tlsFront(t,
						f.pg.Addr()).Port)
					cfg.ConnConfig.TLSConfig = &tls.Config{InsecureSkipVerify: true}
					cfg.ConnConfig.Fallbacks = nil
				}
			})
			got := make(map[string]chan error)
			// start takes a connection for use, and another one while a machine that stalls loses
			// leases of a second before the test takes Redis away.
			start := func(name string, use func(conn *pgxpool.Conn) error) {
				got[name] = make(chan error, 1)
				eventually(t, "a connection for "+name, func() bool {
					conn, err := pool.Acquire(ctxb)
					if err == nil {
						if err = use(conn); err == nil {
							t.Cleanup(conn.Release)
							return true
						}
						conn.Release()
					}
					if !errors.Is(err, semaphore.ErrLost) {
						t.Fatal(err)
					}
					return false
				})
			}
			gone := make(chan struct{})
			for name, run := range running {
				start(name, func(conn *pgxpool.Conn) error {
					end := got[name]
					go func() { end <- run(conn.Conn()) }()
					return nil
				})
			}
			for name, use := range after {
				start(name, func(conn *pgxpool.Conn) error {
					tx, err := conn.Begin(ctxb)
					if err != nil {
						return err
					}
					end := got[name]
					go func() { <-gone; end <- use(ctxb, tx) }()
					return nil
				})
			}
			rd.Kill()
			for name := range running {
				if err := <-got[name]; !errors.Is(err, semaphore.ErrLost) {
					t.Errorf("%s: %v", name, err)
				}
			}
			eventually(t, "the watchdog has ended the others", func() bool { return f.backends() == 0 })
			close(gone)
			for name := range after {
				if err := <-got[name]; !errors.Is(err, semaphore.ErrLost) {
					t.Errorf("%s: %v", name, err)
				}
			}
			ok(t, rd.Restart(ctxb))
			// go-redis dials once a second; after that its goroutines end
			time.Sleep(1200 * time.Millisecond)
		})
	}
}
