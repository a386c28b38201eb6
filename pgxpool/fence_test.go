package pgxpool_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

var fenced = passbuddy.Config{Fence: true}

// asleep has a long time between heartbeats, which would make it end its connections itself.
func asleep(cfg *semaphore.Config) { cfg.TTL = time.Hour }

// freeze ends, in Redis only, the leases of the permits that cover the backends of conns. This
// simulates a process that was stopped for so long.
func (f *fleet) freeze(by *semaphore.Semaphore, conns ...*pgxpool.Conn) {
	f.t.Helper()
	ctx := context.Background()
	backends, err := by.Client().HGetAll(ctx, "{passbuddy-"+f.name+"}:backends").Result()
	if err != nil {
		f.t.Fatal(err)
	}
	found := 0
	for id, text := range backends {
		for _, c := range conns {
			if pid, _, _ := strings.Cut(text, " "); pid == pidOf(c) {
				found++
				by.Client().ZAdd(ctx, "passbuddy-"+f.name, redis.Z{Score: 1, Member: id})
			}
		}
	}
	if found != len(conns) {
		f.t.Fatalf("%d of %d connections are recorded: %v", found, len(conns), backends)
	}
	if err := by.SetCapacity(ctx, f.capacity); err != nil { // so a script notices the ends
		f.t.Fatal(err)
	}
}

func pidOf(c *pgxpool.Conn) string {
	var pid string
	if err := c.QueryRow(context.Background(),
		"select pg_backend_pid()::text").Scan(&pid); err != nil {
		return err.Error()
	}
	return pid
}

func acquire(t *testing.T, pool *pgxpool.Pool) *pgxpool.Conn {
	t.Helper()
	c, err := pool.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Release) // a failed test must not keep its pool from closing
	return c
}

// In each of pgx's query modes, backends are recorded when a connection is handed out, and ended
// over another pool's connection.
func TestFenceOfAFrozenProcess(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec,
		pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			f := newFleet(t, 3)
			peak := f.witness()
			set := func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }
			sleeping, waking := f.semaphore(asleep), f.semaphore()
			sleeper, awake := f.pool(sleeping, fenced, set), f.pool(waking, fenced, set)
			a, b := acquire(t, sleeper), acquire(t, sleeper)
			acquire(t, awake).Release()
			mine, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan error, 1)
			f.freeze(waking, a, b)
			go func() { _, err := b.Exec(mine, "select pg_sleep(60)"); ended <- err }()
			eventually(t, "its backends are ended", func() bool { return f.backends() == 1 })
			if err := <-ended; err == nil {
				t.Error("the query of an ended backend succeeded")
			}
			if a.Ping(mine) == nil {
				t.Error("a connection lives on")
			}
			a.Release()
			b.Release()
			// The process trusts its leases until it learns of the loss, and then queues like any
			// other.
			eventually(t, "it works again", func() bool {
				_, err := sleeper.Exec(context.Background(), "select 1")
				if err != nil && !errors.Is(err, semaphore.ErrLost) {
					t.Fatal(err)
				}
				return err == nil
			})
			if most := peak(); most > f.capacity {
				t.Errorf("%d backends, want at most %d", most, f.capacity)
			}
			sleeper.Close()
			awake.Close()
			f.settled(waking)
		})
	}
}

// The checkout that ends backends overtakes the callers that wait for a connection, and the user's
// hooks do not see it.
func TestFencePassesTheQueue(t *testing.T) {
	f := newFleet(t, 2)
	var prepared, traced atomic.Int32
	sleeping, waking := f.semaphore(asleep), f.semaphore()
	sleeper := f.pool(sleeping, fenced)
	awake := f.pool(waking, fenced, func(cfg *pgxpool.Config) {
		cfg.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) {
			prepared.Add(1)
			return true, nil
		}
		cfg.ConnConfig.Tracer = &acquireTracer{n: &traced}
	})
	a := acquire(t, sleeper)
	defer a.Release()
	const callers, busy = 20, 150 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var ops atomic.Int32
	for range callers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := awake.Exec(context.Background(), "select pg_sleep($1)",
					busy.Seconds()); err != nil {
					t.Error(err)
					return
				}
				ops.Add(1)
			}
		})
	}
	eventually(t, "all wait", func() bool { return ops.Load() > 1 })
	f.freeze(waking, a)
	before := ops.Load()
	eventually(t, "its backend is ended", func() bool {
		return a.Ping(context.Background()) != nil
	})
	if n := ops.Load() - before; n > callers/2 {
		t.Errorf("ended after %d operations, with %d callers in the queue", n, callers)
	}
	cancel()
	wg.Wait()
	if p, tr, n := prepared.Load(), traced.Load(), ops.Load(); p != n || tr != n {
		t.Errorf("%d operations, PrepareConn called %d times, TraceAcquireStart %d", n, p, tr)
	}
}

type acquireTracer struct{ n *atomic.Int32 }

func (a *acquireTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn,
	_ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (a *acquireTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (a *acquireTracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool,
	_ pgxpool.TraceAcquireStartData) context.Context {
	a.n.Add(1)
	return ctx
}
func (a *acquireTracer) TraceAcquireEnd(context.Context, *pgxpool.Pool,
	pgxpool.TraceAcquireEndData) {
}

// The process slept while it opened a connection, and the lease ended meanwhile. The connection is
// not handed out.
func TestFenceRefusesAConnectionWhoseLeaseIsOver(t *testing.T) {
	f := newFleet(t, 2)
	sem := f.semaphore()
	var slept atomic.Bool
	pool := f.pool(sem, fenced, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.ValidateConnect = func(ctx context.Context, _ *pgconn.PgConn) error {
			if slept.CompareAndSwap(false, true) {
				sem.Client().ZRemRangeByRank(ctx, "passbuddy-"+f.name, 0, -1)
			}
			return nil
		}
	})
	if _, err := pool.Exec(context.Background(), "select 1"); !errors.Is(err, semaphore.ErrLost) {
		t.Errorf("%v, want ErrLost", err)
	}
	if _, err := pool.Exec(context.Background(), "select 1"); err != nil {
		t.Error(err)
	}
	pool.Close()
	f.settled(sem)
}

func TestFenceIsRefused(t *testing.T) {
	f := newFleet(t, 1)
	sem := f.semaphore()
	for want, cfg := range map[string]passbuddy.Config{
		"Scope":         {Fence: true, Scope: passbuddy.PerCheckout},
		"KeepOnLoss":    {Fence: true, KeepOnLoss: true},
		"FallbackConns": {Fence: true, FallbackConns: 1},
	} {
		if err := passpool.Configure(f.config(""), sem, cfg); err == nil ||
			!strings.Contains(err.Error(), "Fence") || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	if _, err := passpool.NewHooks(sem, fenced).PrepareConn(context.Background(),
		nil); err == nil || !strings.Contains(err.Error(), "Fence") {
		t.Errorf("NewHooks: %v", err)
	}
}
