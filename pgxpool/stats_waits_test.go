package pgxpool

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A checkout that waits for its turn, and in BeforeConnect or the dial for a permit, is one wait.
func TestStationsAreOneWait(t *testing.T) {
	for name, c := range map[string]struct {
		held, idle time.Duration // after either the only connection is too old
		byHand     bool
	}{
		"a turn and a permit":          {held: 6 * time.Second},
		"a permit":                     {idle: 6 * time.Second},
		"by hand: a turn and a permit": {held: 6 * time.Second, byHand: true},
	} {
		t.Run(name, func(t *testing.T) {
			inWatched(t, 1, func(t *testing.T, w *watched) {
				set := func(config *pgxpool.Config) { config.MaxConnLifetime = 3 * time.Second }
				pool := w.pool(t, passbuddy.Config{PoolName: "orders"}, set)
				held := acquire(t, pool)
				before, seen := statsOf(t, pool), len(w.of(semaphore.ObservedWait))
				time.AfterFunc(c.held, held.Release)
				time.Sleep(c.idle)
				began := time.Now()
				if c.byHand {
					conn, err := pgx.ConnectConfig(context.Background(), pool.Config().ConnConfig)
					must(t, err)
					defer conn.Close(context.Background())
				} else {
					defer acquire(t, pool).Release()
				}
				took := time.Since(began) - connectTime
				got := statsOf(t, pool)
				waited := got.WaitTime - before.WaitTime
				n := got.Waits - before.Waits
				if n != 1 || waited < took-10*time.Millisecond || waited > took {
					t.Errorf("%d waits of %v, it took %v", n, waited, took)
				}
				if took < c.held+endTime {
					t.Errorf("it took %v: the test missed a station", took)
				}
				waits := w.of(semaphore.ObservedWait)[seen:]
				if len(waits) != 1 || waits[0].Duration != waited || waits[0].Err != nil ||
					waits[0].Pool != "orders" {
					t.Errorf("observed %+v, waited %v", waits, waited)
				}
				if got.Opened != 2 || got.OpenTime != 2*connectTime || got.Failed != 0 {
					t.Errorf("opened %d in %v, %d failed", got.Opened, got.OpenTime, got.Failed)
				}
			})
		})
	}
}

// The close of the pool ends waits, which then count as canceled.
func TestCloseCancelsWaits(t *testing.T) {
	inWatched(t, 1, func(t *testing.T, w *watched) {
		pool := w.pool(t, passbuddy.Config{}, nil)
		held := acquire(t, pool)
		refused := make(chan error)
		go func() { _, err := pool.Acquire(context.Background()); refused <- err }()
		time.Sleep(time.Second)
		if got := statsOf(t, pool); got.Waiting != 1 || got.OldestWait != time.Second {
			t.Errorf("%+v", got)
		}
		go pool.Close()
		if err := <-refused; err == nil {
			t.Error("served by a closed pool")
		}
		if got := statsOf(t, pool); got.Canceled != 1 || got.Timeouts != 0 || got.Waiting != 0 {
			t.Errorf("%+v", got)
		}
		held.Release()
	})
}

func TestWaitsOfHooksAreObserved(t *testing.T) {
	inWatched(t, 1, func(t *testing.T, w *watched) {
		hooks := NewHooks(w.sem, passbuddy.Config{PoolName: "by hooks"})
		config, err := pgxpool.ParseConfig(fakepg.DSN)
		must(t, err)
		config.ConnConfig.DialFunc = w.dial
		config.PrepareConn, config.AfterRelease = hooks.PrepareConn, hooks.AfterRelease
		config.BeforeClose = hooks.BeforeClose
		pool, err := pgxpool.NewWithConfig(context.Background(), config)
		must(t, err)
		held := acquire(t, pool)
		before, seen := hooks.allot.Report(), len(w.of(semaphore.ObservedWait))
		time.AfterFunc(time.Second, held.Release)
		acquire(t, pool).Release()
		got, waits := hooks.allot.Report(), w.of(semaphore.ObservedWait)[seen:]
		// It has opened its connection first.
		n, waited := got.Waits-before.Waits, got.WaitTime-before.WaitTime
		if n != 1 || waited != time.Second-connectTime || len(waits) != 1 ||
			waits[0].Pool != "by hooks" || waits[0].Duration != waited {
			t.Errorf("%d waits of %v, observed %+v", n, waited, waits)
		}
		if _, ok := Stats(pool); ok {
			t.Error("hooks have no figures of a pool")
		}
		pool.Close()
	})
}
