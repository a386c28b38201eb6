package integration

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// What the queue of one process costs: 50 goroutines share five connections, those of a bare pool of that size, or of
// PassBuddy's where five is the capacity. The fleet's part is nothing, for this process is all of it.
func BenchmarkSaturated(b *testing.B) {
	const goroutines, capacity = 50, 5
	s := startServers(b, capacity+10)
	for _, kind := range kinds {
		b.Run(kind+"/bare", func(b *testing.B) {
			db, pool := s.saturate(b, kind, nil, capacity)
			contend(b, goroutines, db, pool)
		})
		b.Run(kind+"/passbuddy", func(b *testing.B) {
			sem, err := semaphore.Open(b.Context(), s.redis.URL(), semaphore.Config{Name: b.Name(), Capacity: capacity})
			if err != nil {
				b.Fatal(err)
			}
			defer sem.Close()
			db, pool := s.saturate(b, kind, sem, goroutines)
			contend(b, goroutines, db, pool)
		})
	}
}

// saturate opens a pool of either kind, a bare one if sem is nil.
func (s *servers) saturate(b *testing.B, kind string, sem *semaphore.Semaphore, most int) (*sql.DB, *pgxpool.Pool) {
	if kind == "sql" {
		var db *sql.DB
		var err error
		if sem != nil {
			db = openDB(b, s.postgres.URL(), sem, passbuddy.Config{})
		} else if db, err = sql.Open("pgx", s.postgres.URL()); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = db.Close() })
		db.SetMaxIdleConns(most)
		db.SetMaxOpenConns(most)
		return db, nil
	}
	cfg, err := pgxpool.ParseConfig(s.postgres.URL())
	if err != nil {
		b.Fatal(err)
	}
	cfg.MaxConns = int32(most)
	var pool *pgxpool.Pool
	if sem != nil {
		pool, err = passpool.NewWithConfig(b.Context(), cfg, sem, passbuddy.Config{})
	} else {
		pool, err = pgxpool.NewWithConfig(b.Context(), cfg)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return nil, pool
}

// contend lets the goroutines do b.N queries together.
func contend(b *testing.B, goroutines int, db *sql.DB, pool *pgxpool.Pool) {
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	one := func() error {
		var n int64
		if db != nil {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.QueryRowContext(ctx, "select 1").Scan(&n)
		}
		c, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer c.Release()
		return c.QueryRow(ctx, "select 1").Scan(&n)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := one(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}
