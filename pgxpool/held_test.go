package pgxpool

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A member is one process of a fleet in a bubble: a session, what it logs, and a pool.
type member struct {
	sem  *semaphore.Semaphore
	pool *pgxpool.Pool
	log  *bubble.Log
}

// inScopes runs f with a fleet of so many members, in both scopes.
func inScopes(
	t *testing.T, capacity, members int, cfg passbuddy.Config,
	f func(t *testing.T, members []*member),
) {
	t.Helper()
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			bubble.Run(t, func(t *testing.T, b *bubble.World) {
				pg := new(fakepg.Server)
				cfg := cfg
				cfg.Scope = scope
				var list []*member
				for range members {
					m := &member{log: new(bubble.Log)}
					client, _ := b.Client()
					var err error
					m.sem, err = semaphore.New(context.Background(), client, semaphore.Config{
						Capacity: capacity, Logger: m.log.Logger(),
					})
					must(t, err)
					config, err := pgxpool.ParseConfig(fakepg.DSN)
					must(t, err)
					config.MaxConns = 5
					config.ConnConfig.DialFunc = pg.Dial
					m.pool, err = NewWithConfig(context.Background(), config, m.sem, cfg)
					must(t, err)
					t.Cleanup(func() {
						m.pool.Close()
						time.Sleep(time.Minute)
						must(t, m.sem.Close())
						_ = client.Close()
					})
					list = append(list, m)
				}
				f(t, list)
			})
		})
	}
}

// hijack takes a connection out of the pool, as one that listens.
func hijack(t *testing.T, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	return acquire(t, pool).Hijack()
}

// Stats tell hijacked connections from others in use, however busy the pool is, and from those that
// were opened by hand.
func TestHijackedInStats(t *testing.T) {
	inScopes(t, 5, 1, passbuddy.Config{}, func(t *testing.T, members []*member) {
		ctx, pool := context.Background(), members[0].pool
		is := func(when string, hijacked, inUse int) {
			t.Helper()
			if s := statsOf(t, pool); s.Hijacked != hijacked || s.InUse != inUse {
				t.Errorf("%s: %d hijacked, %d in use; want %d, %d",
					when, s.Hijacked, s.InUse, hijacked, inUse)
			}
		}
		first := acquire(t, pool)
		is("one in use", 0, 1)
		one := hijack(t, pool)
		is("one hijacked", 1, 2)
		other := hijack(t, pool)
		is("two hijacked", 2, 3)
		byHand, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
		must(t, err)
		is("one opened by hand", 2, 4)
		first.Release()
		is("one came back", 2, 3)

		var wg sync.WaitGroup
		end := time.Now().Add(3 * time.Second)
		for range 4 {
			wg.Go(func() {
				for time.Now().Before(end) {
					c := acquire(t, pool)
					time.Sleep(time.Millisecond)
					c.Release()
				}
			})
		}
		wg.Go(func() {
			for time.Now().Before(end) {
				if s := statsOf(t, pool); s.Hijacked > 2 {
					t.Errorf("busy: %d hijacked", s.Hijacked)
				}
				time.Sleep(100 * time.Microsecond)
			}
		})
		wg.Wait()
		is("no longer busy", 2, 3)
		must(t, one.Close(ctx))
		time.Sleep(time.Second)
		is("one hijacked is closed", 1, 2)
		must(t, byHand.Close(ctx))
		must(t, other.Close(ctx))
		time.Sleep(time.Second)
		is("all are closed", 0, 0)
	})
}

// A caller takes the socket out of a connection of the pool (PgConn.Hijack), and returns what is
// left. The backend lives on, so the connection is in use until the socket is closed, and is not
// about to close.
func TestPgConnHijackedInStats(t *testing.T) {
	inScopes(t, 2, 1, passbuddy.Config{}, func(t *testing.T, members []*member) {
		pool := members[0].pool
		c := acquire(t, pool)
		must(t, c.Conn().PgConn().SyncConn(t.Context()))
		// This read fails, but pgx does not close the connection for it.
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Conn().WaitForNotification(short); !pgconn.Timeout(err) {
			t.Errorf("bug in the test: %v", err)
		}
		h, err := c.Conn().PgConn().Hijack()
		must(t, err)
		c.Release()
		time.Sleep(2 * time.Minute) // pgx waits 15s for a close
		acquire(t, pool).Release()
		if s := statsOf(t, pool); s.InUse != 1 || s.Hijacked != 1 || s.Closing != 0 ||
			s.LongUse != 1 {
			t.Errorf("%d in use, %d hijacked, %d over a minute, %d closing; want 1, 1, 1, 0",
				s.InUse, s.Hijacked, s.LongUse, s.Closing)
		}
		must(t, h.Conn.SetDeadline(time.Now().Add(time.Minute)))
		message := []byte{'Q', 0, 0, 0, 6, 'x', 0}
		if _, err := h.Conn.Write(message); err != nil {
			t.Errorf("the socket cannot be used: %v", err)
		} else if _, err := h.Conn.Read(message); err != nil || message[0] != 'C' {
			t.Errorf("the server answers with %q, %v", message, err)
		}
		must(t, h.Conn.Close())
		time.Sleep(time.Minute)
		if s := statsOf(t, pool); s.InUse != 0 || s.Hijacked != 0 || s.Closing != 0 {
			t.Errorf("after the close: %+v", s)
		}
	})
}

// Several open pools share a configuration: whose connection was hijacked is not known.
func TestHijackedOfSeveralPools(t *testing.T) {
	inScopes(t, 5, 1, passbuddy.Config{}, func(t *testing.T, members []*member) {
		pool := members[0].pool
		second, err := pgxpool.NewWithConfig(context.Background(), pool.Config())
		must(t, err)
		defer second.Close()
		a, b := acquire(t, pool), acquire(t, second)
		if s := statsOf(t, pool); s.InUse != 2 || s.Hijacked != 0 {
			t.Errorf("%+v", s)
		}
		a.Release()
		b.Release()
	})
}

// More processes that listen than permits. A caller of each, and one of a process that holds
// nothing, is told what holds the permits; the others' logs and their heartbeats name the pool.
func TestListenersStarveAFleet(t *testing.T) {
	cfg := passbuddy.Config{PoolName: "jobs", AcquireTimeout: 10 * time.Second}
	inScopes(t, 3, 4, cfg, func(t *testing.T, members []*member) {
		ctx := context.Background()
		for _, m := range members[:3] {
			conn := hijack(t, m.pool)
			defer conn.Close(ctx)
		}
		time.Sleep(30 * time.Second)
		// A caller of no pool is told as well.
		if _, err := members[3].sem.Acquire(ctx); !errors.Is(err, semaphore.ErrCapacity) ||
			!strings.Contains(err.Error(), "within 2.5s; 3 of 3 permits are held by hijacked "+
				"connections, the oldest for ") {
			t.Errorf("a plain Acquire is refused with %v", err)
		}
		var wg sync.WaitGroup
		for i, m := range members {
			wg.Go(func() {
				_, err := m.pool.Acquire(ctx)
				const want = "3 of 3 permits are held by hijacked connections, the oldest for "
				if !errors.Is(err, semaphore.ErrCapacity) || !strings.Contains(err.Error(), want) ||
					!strings.Contains(err.Error(), "docs/HELD-CONNECTIONS.md") {
					t.Errorf("member %d is refused with %v", i, err)
				}
			})
		}
		wg.Wait()
		for i, m := range members {
			said := m.log.Lines("level=WARN")
			if i < 3 && (len(said) != 1 || !strings.Contains(said[0], "pool=jobs hijacked=1")) ||
				i == 3 && len(said) != 0 {
				t.Errorf("member %d logs %q", i, said)
			}
		}
		snapshot, err := members[3].sem.Snapshot(ctx)
		must(t, err)
		hijacked := 0
		for _, s := range snapshot.Sessions {
			for _, p := range s.Pools {
				hijacked += p.Hijacked
			}
		}
		if hijacked != 3 {
			t.Errorf("the snapshot shows %d hijacked", hijacked)
		}
	})
}

// A session with Min has as many permits to itself, for all of its pools together.
func TestHeldBeyondMin(t *testing.T) {
	bubble.Run(t, func(t *testing.T, b *bubble.World) {
		ctx, log, pg := context.Background(), new(bubble.Log), new(fakepg.Server)
		client, _ := b.Client()
		defer client.Close()
		sem, err := semaphore.New(ctx, client, semaphore.Config{
			Capacity: 5, Min: 1, Logger: log.Logger(),
		})
		must(t, err)
		defer sem.Close()
		for i, name := range []string{"first", "second"} {
			config, err := pgxpool.ParseConfig(fakepg.DSN)
			must(t, err)
			config.ConnConfig.DialFunc = pg.Dial
			pool, err := NewWithConfig(ctx, config, sem, passbuddy.Config{PoolName: name})
			must(t, err)
			defer pool.Close()
			conn := hijack(t, pool)
			defer conn.Close(ctx)
			time.Sleep(2 * time.Minute)
			if said := log.Lines("connections stay out"); len(said) != 2*i {
				t.Errorf("%d pools have a listener each, Min is 1, and the log says %q", i+1, said)
			}
		}
	})
}

// Two processes fill the capacity with connections whose callers ask for a second one.
func TestNestedAcquiresAreNamed(t *testing.T) {
	cfg := passbuddy.Config{PoolName: "orders", AcquireTimeout: 20 * time.Second}
	inScopes(t, 4, 2, cfg, func(t *testing.T, members []*member) {
		var wg sync.WaitGroup
		for _, m := range members {
			for range 2 {
				wg.Go(func() {
					outer := acquire(t, m.pool)
					defer outer.Release()
					time.Sleep(time.Second)
					_, err := m.pool.Acquire(context.Background())
					const want = `none of the 2 connections that pool "orders" has checked out, ` +
						"the first at least 20s ago, came back in the 20s of the wait"
					if !errors.Is(err, semaphore.ErrCapacity) || !strings.Contains(err.Error(), want) {
						t.Errorf("refused with %v", err)
					}
					time.Sleep(time.Second) // until the other was refused, too
				})
			}
		}
		wg.Wait()
		for i, m := range members {
			if said := m.log.Lines("comes back"); len(said) != 1 ||
				!strings.Contains(said[0], `waiting="orders: 2 for 1`) {
				t.Errorf("member %d logs %q", i, said)
			}
		}
	})
}
