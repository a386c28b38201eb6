package passbuddy

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	world "github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A member is one process of a fleet in a bubble: a session, what it logs, and a DB.
type member struct {
	sem *semaphore.Semaphore
	db  *sql.DB
	log *world.Log
}

// inScopes runs f with a fleet of so many members, in both scopes.
func inScopes(
	t *testing.T, capacity, members int, cfg Config, f func(t *testing.T, members []*member),
) {
	t.Helper()
	for _, scope := range []Scope{PerConnection, PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			world.Run(t, func(t *testing.T, b *world.World) {
				cfg := cfg
				cfg.Scope = scope
				var list []*member
				for range members {
					m := &member{log: new(world.Log)}
					client, _ := b.Client()
					var err error
					m.sem, err = semaphore.New(context.Background(), client, semaphore.Config{
						Capacity: capacity, Logger: m.log.Logger(),
					})
					must(t)(nil, err)
					m.db = OpenDB(&fakeConnector{&server{t: t}, full}, m.sem, cfg)
					t.Cleanup(func() {
						must(t)(nil, m.db.Close())
						time.Sleep(time.Minute)
						must(t)(nil, m.sem.Close())
						_ = client.Close()
					})
					list = append(list, m)
				}
				f(t, list)
			})
		})
	}
}

func connOf(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Each process keeps a connection for LISTEN, or for the lock of a leader. One that gets none is
// told what holds the permits; the logs and the heartbeats of the others name the pool.
func TestListenersStarveAFleet(t *testing.T) {
	cfg := Config{PoolName: "jobs", AcquireTimeout: 10 * time.Second}
	inScopes(t, 3, 4, cfg, func(t *testing.T, members []*member) {
		ctx := context.Background()
		for _, m := range members[:3] {
			defer connOf(t, m.db).Close()
		}
		time.Sleep(85 * time.Second)
		_, err := members[3].db.ExecContext(ctx, "select")
		const want = "3 of 3 permits are held by connections in use for over a minute, the oldest for 1m"
		if !errors.Is(err, semaphore.ErrCapacity) || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "docs/HELD-CONNECTIONS.md") ||
			strings.Contains(err.Error(), "came back") {
			t.Errorf("refused with %v", err)
		}
		snapshot, err := members[3].sem.Snapshot(ctx)
		must(t)(nil, err)
		long := 0
		for _, s := range snapshot.Sessions {
			for _, p := range s.Pools {
				long += p.LongUse
			}
		}
		if long != 3 {
			t.Errorf("the snapshot shows %d long uses", long)
		}
		for i, m := range members {
			said := m.log.Lines("level=WARN")
			if i < 3 && (len(said) != 1 || !strings.Contains(said[0],
				"pool=jobs hijacked=0 over_a_minute=1")) || i == 3 && len(said) != 0 {
				t.Errorf("member %d logs %q", i, said)
			}
			if s := statsOf(t, m.db); i < 3 && s.LongUse != 1 || i == 3 && s.LongUse != 0 {
				t.Errorf("member %d: %+v", i, s)
			}
		}
	})
}

// Two processes fill the capacity with transactions whose callers run a query beside them.
func TestNestedCheckoutsAreNamed(t *testing.T) {
	cfg := Config{PoolName: "orders", AcquireTimeout: 20 * time.Second}
	inScopes(t, 4, 2, cfg, func(t *testing.T, members []*member) {
		ctx := context.Background()
		var wg sync.WaitGroup
		for _, m := range members {
			for range 2 {
				wg.Go(func() {
					tx, err := m.db.BeginTx(ctx, nil)
					must(t)(tx, err)
					time.Sleep(time.Second)
					_, err = m.db.ExecContext(ctx, "select")
					const want = `none of the 2 connections that pool "orders" has checked out, ` +
						"the first at least 20s ago, came back in the 20s of the wait"
					if !errors.Is(err, semaphore.ErrCapacity) || !strings.Contains(err.Error(), want) {
						t.Errorf("refused with %v", err)
					}
					time.Sleep(time.Second) // until the other was refused, too
					must(t)(nil, tx.Rollback())
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

// With a minimum of two, the same callers are served.
func TestMinServesNestedCheckouts(t *testing.T) {
	for _, scope := range []Scope{PerConnection, PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			world.Run(t, func(t *testing.T, b *world.World) {
				ctx := context.Background()
				var wg sync.WaitGroup
				for range 2 {
					client, _ := b.Client()
					sem, err := semaphore.New(ctx, client, semaphore.Config{Capacity: 4, Min: 2,
						Logger: slog.New(slog.DiscardHandler)})
					must(t)(nil, err)
					db := OpenDB(&fakeConnector{&server{t: t}, full}, sem,
						Config{Scope: scope, AcquireTimeout: 20 * time.Second})
					wg.Go(func() {
						lock := connOf(t, db)
						time.Sleep(time.Second) // the other has one, too
						if _, err := db.ExecContext(ctx, "migrate"); err != nil {
							t.Errorf("with Min 2: %v", err)
						}
						must(t)(nil, lock.Close())
						must(t)(nil, db.Close())
						time.Sleep(time.Minute)
						must(t)(nil, sem.Close())
						_ = client.Close()
					})
				}
				wg.Wait()
			})
		})
	}
}
