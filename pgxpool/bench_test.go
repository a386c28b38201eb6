package pgxpool_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
)

// BenchmarkWarmCheckout checks out and returns an idle connection, which sends nothing to Postgres
// or Redis.
func BenchmarkWarmCheckout(b *testing.B) {
	checkout := func(b *testing.B, pool *pgxpool.Pool) {
		b.Helper()
		ctx := context.Background()
		if err := pool.Ping(ctx); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			c, err := pool.Acquire(ctx)
			if err != nil {
				b.Fatal(err)
			}
			c.Release()
		}
	}
	f := newFleet(b, 10)
	b.Run("pool=bare", func(b *testing.B) {
		pool, err := pgxpool.NewWithConfig(context.Background(), f.config(""))
		if err != nil {
			b.Fatal(err)
		}
		defer pool.Close()
		checkout(b, pool)
	})
	b.Run("pool=passbuddy", func(b *testing.B) { checkout(b, f.process(passbuddy.Config{})) })
}

// BenchmarkWarmQuery is the same with a query.
func BenchmarkWarmQuery(b *testing.B) {
	query := func(b *testing.B, pool *pgxpool.Pool) {
		b.Helper()
		ctx := context.Background()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := pool.Exec(ctx, "select 1"); err != nil {
				b.Fatal(err)
			}
		}
	}
	f := newFleet(b, 10)
	b.Run("pool=bare", func(b *testing.B) {
		pool, err := pgxpool.NewWithConfig(context.Background(), f.config(""))
		if err != nil {
			b.Fatal(err)
		}
		defer pool.Close()
		query(b, pool)
	})
	b.Run("pool=passbuddy", func(b *testing.B) { query(b, f.process(passbuddy.Config{})) })
	b.Run("pool=passbuddy-per-checkout", func(b *testing.B) {
		query(b, f.process(passbuddy.Config{Scope: passbuddy.PerCheckout}))
	})
}
