//go:build unix

package integration

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	pgx5pool "github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// burn saturates all processors, with sessions of its own. Linux shares the processors between
// sessions, so the test gets a part of one, and each server gets one too.
func burn(t *testing.T) {
	t.Helper()
	for range 2 * runtime.NumCPU() {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
}

// lostLeases counts the lost leases that a session logs.
type lostLeases struct{ n atomic.Int32 }

func (l *lostLeases) Write(b []byte) (int, error) {
	l.n.Add(int32(bytes.Count(b, []byte("lease lost"))))
	return len(b), nil
}

// On a starved machine no operation fails, and no lease is lost as long as Redis answers within the
// time of a lease. A connection of the test's own verifies that Redis does.
func TestStarvedMachine(t *testing.T) {
	subset.Sometimes(t, 3)
	const (
		ttl      = 5 * time.Second
		capacity = 12
		patience = time.Minute // of each operation: it may be slow
	)
	s := startServersWith(t, throwaway.PostgresOptions{MaxConnections: 40, Apart: true})
	name := "starved"
	var slowest atomic.Int64
	watching, stop := context.WithCancel(t.Context())
	defer stop()
	var watcher sync.WaitGroup
	watcher.Go(func() {
		const pause = 20 * time.Millisecond
		for answered := time.Now(); watching.Err() == nil; {
			time.Sleep(pause) // longer, if the machine stands still: that counts too
			if err := s.redisClient.Ping(context.Background()).Err(); err != nil {
				slowest.Store(int64(time.Hour)) // go-redis gave the call up.
			}
			took := time.Since(answered) - pause
			slowest.Store(max(slowest.Load(), int64(took)))
			answered = answered.Add(took + pause)
		}
	})
	burn(t)

	lost := &lostLeases{}
	cfg, err := pgx.ParseConfig(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	var load, closing sync.WaitGroup
	ends := time.Now().Add(subset.Length(3**loadFor, 4**loadFor)) // for longer than a lease
	var done atomic.Int64
	for i := range 4 {
		sem, err := semaphore.Open(t.Context(), s.redis.URL(), semaphore.Config{
			Name: name, Capacity: capacity, TTL: ttl,
			Logger: slog.New(slog.NewTextHandler(lost, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		pool := passbuddy.Config{AcquireTimeout: patience}
		if i%4 >= 2 {
			pool.Scope = passbuddy.PerCheckout
		}
		var query func(context.Context) error
		var end func() error
		if i%2 == 0 {
			db := passbuddy.OpenDB(stdlib.GetConnector(*cfg), sem, pool)
			query = func(ctx context.Context) error {
				return scan(db.QueryRowContext(ctx, "select pg_sleep(0.005)::text"))
			}
			end = db.Close
		} else {
			c, err := pgx5pool.ParseConfig(s.postgres.URL())
			if err != nil {
				t.Fatal(err)
			}
			c.MaxConns = capacity
			p, err := passpool.NewWithConfig(t.Context(), c, sem, pool)
			if err != nil {
				t.Fatal(err)
			}
			query = func(ctx context.Context) error {
				_, err := p.Exec(ctx, "select pg_sleep(0.005)")
				return err
			}
			end = func() error { p.Close(); return nil }
		}
		var mine sync.WaitGroup
		for range 10 {
			mine.Go(func() {
				for time.Now().Before(ends) {
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					if err := query(ctx); err != nil && time.Duration(slowest.Load()) < ttl/2 {
						t.Errorf("an operation failed: %v", err)
					}
					cancel()
					done.Add(1)
				}
			})
		}
		load.Go(mine.Wait)
		closing.Go(func() {
			mine.Wait()
			if err := end(); err != nil {
				t.Error(err)
			}
			if err := sem.Close(); err != nil && time.Duration(slowest.Load()) < time.Second {
				t.Error(err)
			}
		})
	}
	load.Wait()
	closing.Wait()
	closed := time.Now()
	left := int64(-1)
	for left != 0 && time.Since(closed) < 2*time.Second {
		if left, err = s.redisClient.ZCard(context.Background(),
			"passbuddy-"+name).Result(); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	watcher.Wait()
	took := time.Duration(slowest.Load())
	if n := lost.n.Load(); n > 0 && took < ttl/2 {
		t.Errorf("%d leases lost, though Redis answered within %v", n, took)
	}
	if left != 0 && took < time.Second {
		t.Errorf("%d permits are left in Redis 2 s after all had closed (%v)", left, err)
	}
	t.Logf("%d operations, %d leases lost, %d permits left, the slowest answer of Redis took %v",
		done.Load(), lost.n.Load(), left, took)
}

func scan(row *sql.Row) error {
	var s string
	return row.Scan(&s)
}
