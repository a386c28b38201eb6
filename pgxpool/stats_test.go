package pgxpool

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	connectTime = 50 * time.Millisecond
	endTime     = 200 * time.Millisecond
)

// A watched is a semaphore in a bubble with its observer, and a Postgres that is slow.
type watched struct {
	sem *semaphore.Semaphore
	pg  *fakepg.Server

	mu      sync.Mutex
	seen    []semaphore.Observation
	dialErr error
}

func (w *watched) Observe(o semaphore.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, o)
}

func (w *watched) of(kind semaphore.ObservationKind) (list []semaphore.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.seen {
		if o.Kind == kind {
			list = append(list, o)
		}
	}
	return list
}

func (w *watched) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	time.Sleep(connectTime)
	w.mu.Lock()
	err := w.dialErr
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return w.pg.Dial(ctx, network, addr)
}

func (w *watched) failDials(err error) {
	w.mu.Lock()
	w.dialErr = err
	w.mu.Unlock()
}

func inWatched(t *testing.T, capacity int, f func(t *testing.T, w *watched)) {
	t.Helper()
	bubble.Run(t, func(t *testing.T, b *bubble.World) {
		w := &watched{pg: &fakepg.Server{OnEnd: func() { time.Sleep(endTime) }}}
		client, _ := b.Client()
		sem, err := semaphore.New(context.Background(), client, semaphore.Config{
			Capacity: capacity, Logger: slog.New(slog.DiscardHandler), Observer: w,
		})
		must(t, err)
		w.sem = sem
		f(t, w)
		time.Sleep(time.Minute)
		must(t, sem.Close())
		_ = client.Close()
	})
}

func lastOf(list []semaphore.Observation) (o semaphore.Observation) {
	if n := len(list); n > 0 {
		o = list[n-1]
	}
	return o
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *watched) pool(
	t *testing.T, cfg passbuddy.Config, set func(*pgxpool.Config),
) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(fakepg.DSN)
	must(t, err)
	config.MaxConns = 5
	config.ConnConfig.DialFunc = w.dial
	if set != nil {
		set(config)
	}
	pool, err := NewWithConfig(context.Background(), config, w.sem, cfg)
	must(t, err)
	t.Cleanup(func() { pool.Close(); time.Sleep(time.Minute) })
	return pool
}

func acquire(t *testing.T, pool *pgxpool.Pool) *pgxpool.Conn {
	t.Helper()
	c, err := pool.Acquire(context.Background())
	must(t, err)
	return c
}

// statsOf returns the figures of a pool at rest, in a bubble. It waits for work that is due at this
// instant: for example, a pool asks Postgres again and again about a connection in doubt.
func statsOf(t *testing.T, pool *pgxpool.Pool) passbuddy.PoolStats {
	t.Helper()
	synctest.Wait()
	s, ok := Stats(pool)
	if !ok {
		t.Fatal("not PassBuddy's")
	}
	return s
}

func TestStatsOfOthers(t *testing.T) {
	config, err := pgxpool.ParseConfig(fakepg.DSN)
	must(t, err)
	bare, err := pgxpool.NewWithConfig(context.Background(), config)
	must(t, err)
	defer bare.Close()
	for name, pool := range map[string]*pgxpool.Pool{"bare": bare, "nil": nil} {
		if got, ok := Stats(pool); ok || got != (passbuddy.PoolStats{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Every figure of a pool, in both scopes.
func TestFiguresOfPool(t *testing.T) {
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			inWatched(t, 3, func(t *testing.T, w *watched) {
				pool := w.pool(t, passbuddy.Config{Scope: scope, AcquireTimeout: time.Second}, nil)
				ctx := context.Background()
				is := func(when string, want passbuddy.PoolStats) {
					t.Helper()
					got := statsOf(t, pool)
					got = passbuddy.PoolStats{
						Permits: got.Permits, InUse: got.InUse, Idle: got.Idle,
						Opening: got.Opening, Closing: got.Closing, Opened: got.Opened,
						Failed: got.Failed, OpenTime: got.OpenTime, Timeouts: got.Timeouts,
						Waiting: got.Waiting,
					}
					if got != want {
						t.Errorf("%s:\ngot  %+v\nwant %+v", when, got, want)
					}
				}
				is("at first", passbuddy.PoolStats{})
				var held []*pgxpool.Conn
				for range 3 {
					held = append(held, acquire(t, pool))
				}
				want := passbuddy.PoolStats{
					Permits: 3, InUse: 3, Opened: 3, OpenTime: 3 * connectTime,
				}
				is("all out", want)

				before := statsOf(t, pool)
				_, err := pool.Acquire(ctx)
				if !errors.Is(err, semaphore.ErrCapacity) {
					t.Error(err)
				}
				want.Timeouts = 1
				is("a caller was refused", want)
				after := statsOf(t, pool)
				n, took := after.Waits-before.Waits, after.WaitTime-before.WaitTime
				if n != 1 || took != time.Second {
					t.Errorf("%d waits of %v", n, took)
				}
				waits := w.of(semaphore.ObservedWait)
				last := lastOf(waits)
				if int64(len(waits)) != after.Waits || last.Pool != "127.0.0.1:5432/x" ||
					last.Duration != time.Second || !errors.Is(last.Err, semaphore.ErrCapacity) {
					t.Errorf("%d waits, observed %+v", after.Waits, waits)
				}

				const wait = 10 * time.Millisecond
				time.AfterFunc(wait, held[0].Release)
				c := acquire(t, pool) // waits for it
				served := statsOf(t, pool)
				n, took = served.Waits-after.Waits, served.WaitTime-after.WaitTime
				if n != 1 || took != wait {
					t.Errorf("%d waits of %v", n, took)
				}
				waits = w.of(semaphore.ObservedWait)
				last = lastOf(waits)
				if int64(len(waits)) != served.Waits || last.Duration != wait || last.Err != nil {
					t.Errorf("%d waits, observed %+v", served.Waits, waits)
				}

				c.Release()
				synctest.Wait()
				want.InUse, want.Idle = 2, 1
				if scope == passbuddy.PerCheckout {
					time.Sleep(time.Second) // the permit is kept for a moment
					want.Permits = 2
				}
				is("one is idle", want)

				_ = held[1].Conn().Close(ctx)
				held[1].Release()
				synctest.Wait()
				want.InUse, want.Closing = 1, 1
				is("one is being closed", want)
				time.Sleep(time.Second)
				want.Closing = 0
				want.Permits--
				is("it is gone", want)

				w.failDials(errors.New("no such host"))
				c = acquire(t, pool) // the idle one
				opening := make(chan error)
				go func() { _, err := pool.Acquire(ctx); opening <- err }()
				for range 1000 {
					if time.Sleep(time.Millisecond); statsOf(t, pool).Opening > 0 {
						break
					}
				}
				want.InUse, want.Idle, want.Opening, want.Permits = 2, 0, 1, 3
				is("one is being opened", want)
				if err := <-opening; err == nil {
					t.Error("there is no such host")
				}
				time.Sleep(time.Second)
				want.Opening, want.Failed, want.Permits = 0, 1, 2
				is("it could not be opened", want)
				opens := w.of(semaphore.ObservedOpen)
				last = lastOf(opens)
				if len(opens) != 4 || opens[0].Err != nil || opens[0].Duration != connectTime ||
					last.Err == nil || last.Duration != connectTime ||
					last.Pool != "127.0.0.1:5432/x" {
					t.Errorf("observed %+v", opens)
				}
				if n := len(w.of(semaphore.ObservedWait)); int64(n) != statsOf(t, pool).Waits {
					t.Errorf("%d waits observed, of %d", n, statsOf(t, pool).Waits)
				}
				c.Release()
				held[2].Release()
				pool.Close()
				time.Sleep(time.Minute)
				want = passbuddy.PoolStats{
					Opened: 3, OpenTime: 3 * connectTime, Failed: 1, Timeouts: 1,
				}
				is("after Close", want)
			})
		})
	}
}

// A connection that AfterConnect refuses could not be opened.
func TestAfterConnectIsPartOfAnOpen(t *testing.T) {
	inWatched(t, 2, func(t *testing.T, w *watched) {
		refused := errors.New("no such role")
		err := refused
		pool := w.pool(t, passbuddy.Config{}, func(config *pgxpool.Config) {
			config.AfterConnect = func(context.Context, *pgx.Conn) error {
				time.Sleep(time.Second)
				return err
			}
		})
		if _, err := pool.Acquire(context.Background()); !errors.Is(err, refused) {
			t.Error(err)
		}
		err = nil
		acquire(t, pool).Release()
		got := statsOf(t, pool)
		if got.Opened != 1 || got.Failed != 1 || got.OpenTime != connectTime+time.Second {
			t.Errorf("%+v", got)
		}
		opens := w.of(semaphore.ObservedOpen)
		if len(opens) != 2 || !errors.Is(opens[0].Err, refused) || opens[1].Err != nil {
			t.Errorf("observed %+v", opens)
		}
	})
}

// A pool that may not open as many connections as it would like has not failed to open them, and no
// caller waits for them.
func TestBackgroundRefusalsAreNoFailures(t *testing.T) {
	inWatched(t, 2, func(t *testing.T, w *watched) {
		pool := w.pool(t, passbuddy.Config{}, func(config *pgxpool.Config) {
			config.MinConns, config.HealthCheckPeriod = 5, time.Second
		})
		time.Sleep(10 * time.Second)
		got := statsOf(t, pool)
		if got.Opened != 2 || got.Failed != 0 || got.Waits != 0 || got.Idle != 2 {
			t.Errorf("%+v", got)
		}
		if opens := w.of(semaphore.ObservedOpen); len(opens) != 2 {
			t.Errorf("observed %+v", opens)
		}
	})
}

// Two pools of one database have names of their own. Hooks have one, too.
func TestNamesOfPools(t *testing.T) {
	inWatched(t, 5, func(t *testing.T, w *watched) {
		password := func(config *pgxpool.Config) { config.ConnConfig.Password = "secret" }
		first, second := w.pool(t, passbuddy.Config{}, password), w.pool(t, passbuddy.Config{}, nil)
		for pool, want := range map[*pgxpool.Pool]string{
			first: "127.0.0.1:5432/x", second: "127.0.0.1:5432/x (2)",
		} {
			if got := statsOf(t, pool).Name; got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		hooks := NewHooks(w.sem, passbuddy.Config{})
		if _, err := hooks.allot.Enter(context.Background(), false); err != nil {
			t.Fatal(err)
		}
		pools := w.sem.Stats().Pools
		if len(pools) == 0 || pools[len(pools)-1].Name != "pool" {
			t.Errorf("%+v", pools)
		}
		hooks.allot.Exit()
	})
}
