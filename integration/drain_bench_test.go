package integration

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A drain under load, and the way back: 8 sessions of 40 goroutines share 20 permits, with queries
// of 5 ms. It reports how long it takes until no backend is left, and how long after the resume the
// fleet has 90 % of its throughput again. An operation that fails fails the benchmark: no bound of a
// caller is reached.
func BenchmarkDrain(b *testing.B) {
	const sessions, goroutines, capacity = 8, 40, 20
	r, c := startRedis(b)
	pg, err := throwaway.StartPostgres(b.Context(), throwaway.PostgresOptions{MaxConnections: 100})
	if err != nil {
		skipIfMissing(b, err)
	}
	b.Cleanup(func() { _ = pg.Stop() })
	watcher, err := pgxpool.New(b.Context(), pg.AdminURL())
	if err != nil {
		b.Fatal(err)
	}
	defer watcher.Close()

	var done atomic.Int64
	ctx, stop := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for range sessions {
		own := redis.NewClient(&redis.Options{Addr: r.Addr()})
		b.Cleanup(func() { _ = own.Close() })
		s, err := semaphore.New(b.Context(), own, semaphore.Config{Name: "drain", Capacity: capacity})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = s.Close() })
		pool, err := passpool.New(b.Context(), pg.URL(), s, passbuddy.Config{})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(pool.Close)
		for range goroutines {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, err := pool.Exec(ctx, "select pg_sleep(0.005)", pgx.QueryExecModeExec)
					if err != nil && !errors.Is(err, context.Canceled) {
						b.Error(err)
						return
					}
					done.Add(1)
				}
			})
		}
	}
	inspector, err := semaphore.NewInspector(c, "", "drain")
	if err != nil {
		b.Fatal(err)
	}
	backends := func() (n int) {
		err := watcher.QueryRow(b.Context(), "select count(*) from pg_stat_activity where usename = $1",
			throwaway.Role).Scan(&n)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	rate := func(d time.Duration) float64 {
		was, began := done.Load(), time.Now()
		time.Sleep(d)
		return float64(done.Load()-was) / time.Since(began).Seconds()
	}

	var drained, back []time.Duration
	for b.Loop() {
		time.Sleep(2 * time.Second)
		steady := rate(2 * time.Second)
		began := time.Now()
		if err := inspector.Pause(b.Context(), semaphore.PauseOptions{Drain: true}); err != nil {
			b.Fatal(err)
		}
		for backends() > 0 {
			time.Sleep(5 * time.Millisecond)
		}
		drained = append(drained, time.Since(began))
		time.Sleep(time.Second)
		if n := backends(); n > 0 {
			b.Errorf("%d backends in a drained fleet", n)
		}
		if err := inspector.Resume(b.Context()); err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		for rate(100*time.Millisecond) < 0.9*steady {
			if time.Since(began) > 10*time.Second {
				b.Fatal("the throughput does not come back")
			}
		}
		back = append(back, time.Since(began))
		if n := backends(); n > capacity {
			b.Errorf("%d backends of %d", n, capacity)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(median(drained).Milliseconds()), "drained-p50-ms")
	b.ReportMetric(float64(slices.Max(drained).Milliseconds()), "drained-max-ms")
	b.ReportMetric(float64(median(back).Milliseconds()), "back-p50-ms")
	b.ReportMetric(float64(slices.Max(back).Milliseconds()), "back-max-ms")
}
