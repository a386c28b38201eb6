package pgxpool_test

import (
	"context"
	"testing"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

type emptyTracer struct{}

func (emptyTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (emptyTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (emptyTracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return ctx
}
func (emptyTracer) TraceAcquireEnd(context.Context, *pgxpool.Pool, pgxpool.TraceAcquireEndData) {}
func (emptyTracer) TraceRelease(*pgxpool.Pool, pgxpool.TraceReleaseData)                        {}

func BenchmarkFloor(b *testing.B) {
	f := newFleet(b, 10)
	for _, m := range []string{"bare", "tracer", "tracer+prepare", "all"} {
		b.Run(m, func(b *testing.B) {
			cfg := f.config("")
			if m != "bare" {
				cfg.ConnConfig.Tracer = &emptyTracer{}
			}
			if m == "tracer+prepare" || m == "all" {
				cfg.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { return true, nil }
			}
			if m == "all" {
				cfg.ShouldPing = func(_ context.Context, p pgxpool.ShouldPingParams) bool { return p.IdleDuration > 1e9 }
			}
			pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			ctx := context.Background()
			for b.Loop() {
				c, err := pool.Acquire(ctx)
				if err != nil {
					b.Fatal(err)
				}
				c.Release()
			}
		})
	}
}
func BenchmarkMutex(b *testing.B) {
	var mu sync.Mutex
	for b.Loop() {
		mu.Lock()
		mu.Unlock()
	}
}
