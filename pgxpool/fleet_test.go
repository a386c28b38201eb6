package pgxpool_test

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/subset"
)

var stress = flag.Duration("stress", time.Second, "how long each stress test runs")

// TestCapHoldsUnderFaults runs four processes, ends their connections in every hard way, and
// samples the server.
func TestCapHoldsUnderFaults(t *testing.T) {
	type fault struct {
		name string
		run  func(ctx context.Context, t *testing.T, pool *pgxpool.Pool)
		set  func(*pgxpool.Config)
		kill bool
	}
	for _, c := range subset.Of(t, 3, []fault{
		{name: "mixed queries", run: mixedQuery},
		{name: "statement timeouts",
			run: func(ctx context.Context, t *testing.T, pool *pgxpool.Pool) {
				short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
				defer cancel()
				if rand.IntN(2) == 0 {
					short = ctx
				}
				_, err := pool.Exec(short, "select pg_sleep($1)", rand.Float64()/100)
				if err != nil && !errors.Is(err, context.DeadlineExceeded) && !pgconnTimeout(err) {
					t.Error(err)
				}
			}},
		{name: "hijack", run: func(ctx context.Context, t *testing.T, pool *pgxpool.Pool) {
			if rand.IntN(5) > 0 {
				mixedQuery(ctx, t, pool)
				return
			}
			c, err := pool.Acquire(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			conn := c.Hijack()
			if _, err := conn.Exec(ctx, "select 1"); err != nil {
				t.Error(err)
			}
			switch rand.IntN(3) {
			case 0:
				conn.Close(ctx)
			case 1:
				conn.PgConn().Conn().Close()
			default:
				h, err := conn.PgConn().Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				h.Conn.Close()
			}
		}},
		{name: "failing AfterConnect",
			run: func(ctx context.Context, t *testing.T, pool *pgxpool.Pool) {
				c, err := pool.Acquire(ctx)
				if err != nil {
					if !errors.Is(err, errHook) {
						t.Error(err)
					}
					return
				}
				defer c.Release()
				if _, err := c.Exec(ctx, "select 1"); err != nil {
					t.Error(err)
				}
				if rand.IntN(5) == 0 {
					c.Conn().Close(ctx)
				}
			}, set: func(cfg *pgxpool.Config) {
				cfg.AfterConnect = func(context.Context, *pgx.Conn) error {
					if rand.IntN(2) == 0 {
						return errHook
					}
					return nil
				}
			}},
		{name: "terminated backends", kill: true,
			run: func(ctx context.Context, t *testing.T, pool *pgxpool.Pool) {
				// fails whenever a fault hits it
				_, _ = pool.Exec(ctx, "select pg_sleep($1)", rand.Float64()/100)
			}},
	}) {
		t.Run(c.name, func(t *testing.T) {
			const capacity = 5
			f := newFleet(t, capacity)
			watch := f.semaphore()
			peak := f.witness()
			var wg sync.WaitGroup
			var pools []*pgxpool.Pool
			var ops atomic.Int64
			const fewest = 20
			// A slow machine needs longer for the fewest operations that mean anything.
			end := time.Now().Add(*stress)
			goesOn := func() bool { return time.Now().Before(end) || ops.Load() < fewest }
			for range 4 {
				pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
					if c.set != nil {
						c.set(cfg)
					}
				})
				pools = append(pools, pool)
				for range 10 {
					wg.Go(func() {
						for goesOn() {
							c.run(context.Background(), t, pool)
							ops.Add(1)
						}
					})
				}
			}
			if c.kill {
				ticker := time.NewTicker(10 * time.Millisecond)
				defer ticker.Stop()
				for goesOn() {
					<-ticker.C
					_, err := f.admin.Exec(context.Background(),
						`select pg_terminate_backend(pid) from
						(select pid from pg_stat_activity where application_name = $1 `+
							`order by random() limit 1) p`, f.name)
					if err != nil {
						t.Error(err)
					}
				}
			}
			wg.Wait()
			if p := peak(); p > capacity {
				t.Errorf("%d backends at the peak, the cap is %d", p, capacity)
			}
			t.Logf("%d operations", ops.Load())
			for _, pool := range pools {
				pool.Close()
			}
			f.settled(watch)
		})
	}
}

var errHook = errors.New("hook refused")

func mixedQuery(ctx context.Context, t *testing.T, pool *pgxpool.Pool) {
	if _, err := pool.Exec(ctx, "select pg_sleep($1)", rand.Float64()/100); err != nil {
		t.Error(err)
	}
}
