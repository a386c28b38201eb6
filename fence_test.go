package passbuddy_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

var fenced = passbuddy.Config{Fence: true}

// freeze ends, in Redis only, the leases of the permits that cover the backends of the given
// sessions. This simulates a process that was stopped for so long.
func freeze(t *testing.T, by *semaphore.Semaphore, pids ...string) {
	t.Helper()
	ctx := context.Background()
	backends, err := by.Client().HGetAll(ctx, "{passbuddy-"+t.Name()+"}:backends").Result()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for id, text := range backends {
		for _, pid := range pids {
			if strings.HasPrefix(text, pid+" ") {
				found++
				by.Client().ZAdd(ctx, "passbuddy-"+t.Name(), redis.Z{Score: 1, Member: id})
			}
		}
	}
	if found != len(pids) {
		t.Fatalf("%d of backends %q are recorded: %v", found, pids, backends)
	}
	// so a script notices the ends
	if err := by.SetCapacity(ctx, by.Engine(engine.Seam{}).Capacity()); err != nil {
		t.Fatal(err)
	}
}

func pidOf(t *testing.T, c *sql.Conn) (pid string) {
	t.Helper()
	if err := c.QueryRowContext(context.Background(),
		"select pg_backend_pid()::text").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func checkout(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The test covers each way to open a DB over pgx, with and without a prepared statement on the
// connection that ends the backends.
func TestFenceOfAFrozenProcess(t *testing.T) {
	s := start(t)
	for _, name := range subset.Of(t, 1, []string{"pgx registered", "pgx connector"}) {
		open := openers[name]
		for _, prepared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/prepared %v", name, prepared), func(t *testing.T) {
				const capacity = 3
				peak := s.watch(t)
				// The sleeper has a long time between heartbeats, which would make it end its
				// connections itself.
				sleeping, waking := s.sessionFor(t, capacity, time.Hour), s.session(t, capacity)
				sleeper, awake := open(t, s, sleeping, fenced), open(t, s, waking, fenced)
				a, b := checkout(t, sleeper), checkout(t, sleeper)
				if prepared {
					st, err := awake.Prepare("select 1")
					if err != nil {
						t.Fatal(err)
					}
					defer st.Close()
				}
				if err := awake.Ping(); err != nil {
					t.Fatal(err)
				}
				freeze(t, waking, pidOf(t, a), pidOf(t, b))
				eventually(t, "the sleeper's connections are ended", func() bool {
					return a.PingContext(context.Background()) != nil &&
						b.PingContext(context.Background()) != nil
				})
				a.Close()
				b.Close()
				// it trusts its leases until it learns of the loss
				eventually(t, "the sleeper works again", func() bool { return sleeper.Ping() == nil })
				if err := awake.Ping(); err != nil {
					t.Error(err)
				}
				for _, db := range []*sql.DB{sleeper, awake} {
					if err := db.Close(); err != nil {
						t.Error(err)
					}
				}
				for _, sem := range []*semaphore.Semaphore{sleeping, waking} {
					if snap, err := sem.Snapshot(context.Background()); err != nil ||
						snap.Quarantined > 0 {
						t.Errorf("%d permits are left in quarantine, %v", snap.Quarantined, err)
					}
					if err := sem.Close(); err != nil {
						t.Error(err)
					}
				}
				if most := peak(); most > capacity {
					t.Errorf("%d backends, capacity %d", most, capacity)
				}
			})
		}
	}
}

func TestFenceIsRefused(t *testing.T) {
	s := start(t)
	sem := s.session(t, 1)
	defer sem.Close()
	for want, cfg := range map[string]passbuddy.Config{
		"Scope":         {Fence: true, Scope: passbuddy.PerCheckout},
		"KeepOnLoss":    {Fence: true, KeepOnLoss: true},
		"FallbackConns": {Fence: true, FallbackConns: 1},
	} {
		refused := passbuddy.OpenDB(stdlib.GetConnector(pgx.ConnConfig{}), sem, cfg)
		if err := refused.Ping(); err == nil || !strings.Contains(err.Error(), "Fence") ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", cfg, err)
		}
		_ = refused.Close()
	}
	// Other drivers, and where the error appears.
	func() {
		defer func() {
			if r := fmt.Sprint(recover()); !strings.Contains(r, "Config.Fence needs pgx") ||
				!strings.Contains(r, "*pq.Driver") {
				t.Errorf("Register of lib/pq: %v", r)
			}
		}()
		passbuddy.Register("never", &pq.Driver{}, sem, fenced)
	}()
	c, err := pq.NewConnector(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	for want, db := range map[string]*sql.DB{
		"Config.Fence needs pgx": passbuddy.OpenDB(c, sem, fenced),
		"Config.Fence cannot follow the socket": openers["pgx configuration by name"](t, s, sem,
			fenced),
	} {
		if err := db.Ping(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	// A permit of the last refusal comes back when its socket's end was read.
	eventually(t, "no permit is held after refusals", func() bool {
		snap, err := sem.Snapshot(context.Background())
		return err == nil && snap.Held == 0
	})
}

// The process slept while it opened a connection, and the lease ended meanwhile. The connection is
// not handed out, and its caller gets another one.
func TestFenceRefusesAConnectionWhoseLeaseIsOver(t *testing.T) {
	s := start(t)
	sem := s.session(t, 2)
	defer sem.Close()
	cfg, err := pgx.ParseConfig(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	slept, opened := false, 0
	db := passbuddy.OpenDB(stdlib.GetConnector(*cfg,
		stdlib.OptionAfterConnect(func(ctx context.Context, _ *pgx.Conn) error {
			opened++
			if !slept {
				slept = true
				sem.Client().ZRemRangeByRank(ctx, "passbuddy-"+t.Name(), 0, -1)
			}
			return nil
		})), sem, fenced)
	if err := db.Ping(); err != nil || opened != 2 {
		t.Errorf("%v, %d connections opened, want 2", err, opened)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
