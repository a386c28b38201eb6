package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	world "github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A watched is a semaphore in a bubble, with its observer.
type watched struct {
	*world.World
	sem *semaphore.Semaphore

	mu   sync.Mutex
	seen []semaphore.Observation
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

func inWatched(t *testing.T, capacity int, f func(t *testing.T, w *watched)) {
	t.Helper()
	world.Run(t, func(t *testing.T, b *world.World) {
		w := &watched{World: b}
		client, _ := b.Client()
		sem, err := semaphore.New(context.Background(), client, semaphore.Config{
			Capacity: capacity, Logger: slog.New(slog.DiscardHandler), Observer: w,
		})
		must(t)(sem, err)
		w.sem = sem
		f(t, w)
		must(t)(nil, sem.Close())
		_ = client.Close()
	})
}

func lastOf(list []semaphore.Observation) (o semaphore.Observation) {
	if n := len(list); n > 0 {
		o = list[n-1]
	}
	return o
}

// statsOf is Stats of a DB that is PassBuddy's.
func statsOf(t *testing.T, db *sql.DB) PoolStats {
	t.Helper()
	s, ok := Stats(db)
	if !ok {
		t.Fatal("not PassBuddy's")
	}
	return s
}

// Stats finds the pool of a DB however that was opened, also if several share a driver.
func TestStatsFindsItsPool(t *testing.T) {
	inWatched(t, 9, func(t *testing.T, w *watched) {
		s := &server{t: t}
		inner := &fakeConnector{s, full}
		Register(t.Name(), inner.Driver(), w.sem, Config{PoolName: "registered"})
		open := func() *sql.DB {
			db, err := sql.Open(t.Name(), "x")
			must(t)(db, err)
			return db
		}
		dbs := []*sql.DB{
			open(), open(),
			sql.OpenDB(WrapConnector(inner, w.sem, Config{PoolName: "wrapped"})),
			OpenDB(inner, w.sem, Config{PoolName: "opened"}),
		}
		for i, db := range dbs {
			for range i { // so many connections
				c, err := db.Conn(context.Background())
				must(t)(c, err)
				defer c.Close()
			}
		}
		var wg sync.WaitGroup
		for i, db := range dbs {
			for range 10 {
				wg.Go(func() {
					for range 100 {
						if got, ok := Stats(db); !ok || got.InUse != i {
							t.Errorf("DB %d: %v, %+v", i, ok, got)
							return
						}
						dbs[(i+1)%len(dbs)].Driver() // of another
					}
				})
			}
		}
		wg.Wait()
		// The first is not in use, so it has the name that it asked for.
		names := []string{"registered", "registered", "wrapped", "opened"}
		for i, db := range dbs {
			if got := statsOf(t, db).Name; got != names[i] {
				t.Errorf("DB %d is called %q", i, got)
			}
		}
		if n := len(asking.found); n != 0 || asking.n.Load() != 0 {
			t.Errorf("%d questions are left over", n)
		}
		for _, db := range dbs {
			_ = db.Close()
			if _, ok := Stats(db); !ok {
				t.Error("a closed DB has no figures")
			}
		}
		time.Sleep(time.Minute)
	})
}

func TestStatsOfOthers(t *testing.T) {
	foreign := sql.OpenDB(&fakeConnector{&server{t: t}, full})
	defer foreign.Close()
	refused := OpenDB(nil, nil, Config{})
	defer refused.Close()
	for name, db := range map[string]*sql.DB{"foreign": foreign, "nil": nil, "refused": refused} {
		if got, ok := Stats(db); ok || got != (PoolStats{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Every figure of a DB, in both scopes.
func TestFiguresOfDB(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			inWatched(t, 3, func(t *testing.T, w *watched) {
				const connect = 50 * time.Millisecond
				s := &server{t: t, connectErr: func() error { time.Sleep(connect); return nil }}
				db := OpenDB(&fakeConnector{s, full}, w.sem,
					Config{Scope: scope, AcquireTimeout: time.Second, PoolName: "orders"})
				ctx := context.Background()
				var held []*sql.Conn
				for range 3 {
					c, err := db.Conn(ctx)
					must(t)(c, err)
					held = append(held, c)
				}
				is := func(when string, want PoolStats) {
					t.Helper()
					got := statsOf(t, db)
					got = PoolStats{
						Permits: got.Permits, InUse: got.InUse, Idle: got.Idle,
						Opening: got.Opening, Closing: got.Closing, Opened: got.Opened,
						Failed: got.Failed, OpenTime: got.OpenTime, Timeouts: got.Timeouts,
						Waiting: got.Waiting,
					}
					if got != want {
						t.Errorf("%s:\ngot  %+v\nwant %+v", when, got, want)
					}
				}
				want := PoolStats{Permits: 3, InUse: 3, Opened: 3, OpenTime: 3 * connect}
				is("all out", want)

				before := statsOf(t, db)
				began := time.Now()
				_, err := db.Conn(ctx)
				if !errors.Is(err, semaphore.ErrCapacity) || time.Since(began) != time.Second {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				want.Timeouts = 1
				is("a caller was refused", want)
				after := statsOf(t, db)
				n, took := after.Waits-before.Waits, after.WaitTime-before.WaitTime
				if n != 1 || took != time.Second {
					t.Errorf("%d waits of %v", n, took)
				}
				waits := w.of(semaphore.ObservedWait)
				last := lastOf(waits)
				if int64(len(waits)) != after.Waits || last.Pool != "orders" ||
					last.Duration != time.Second || !errors.Is(last.Err, semaphore.ErrCapacity) {
					t.Errorf("%d waits, observed %+v", after.Waits, waits)
				}

				must(t)(nil, held[0].Close())
				want.InUse, want.Idle = 2, 1
				if scope == PerCheckout {
					time.Sleep(time.Second) // the permit is kept for a moment
					want.Permits = 2
				}
				is("one is idle", want)

				s.onClose = func() { time.Sleep(200 * time.Millisecond) }
				_ = held[1].Raw(func(any) error { return driver.ErrBadConn })
				synctest.Wait()
				want.InUse, want.Closing = 1, 1
				is("one is being closed", want)
				time.Sleep(time.Second)
				want.Closing = 0
				want.Permits--
				is("it is gone", want)

				dialled := make(chan bool)
				s.connectErr = func() error {
					dialled <- true
					time.Sleep(connect)
					return errors.New("no such host")
				}
				taken, err := db.Conn(ctx) // the idle one
				must(t)(taken, err)
				opening := make(chan error)
				go func() { _, err := db.Conn(ctx); opening <- err }()
				<-dialled
				want.InUse, want.Idle, want.Opening = 2, 0, 1
				want.Permits = 3
				is("one is being opened", want)
				if err := <-opening; err == nil || !strings.Contains(err.Error(), "no such host") {
					t.Errorf("opening: %v", err)
				}
				time.Sleep(time.Second)
				want.Opening, want.Failed, want.Permits = 0, 1, 2
				is("it could not be opened", want)
				opens := w.of(semaphore.ObservedOpen)
				last = lastOf(opens)
				if len(opens) != 4 || opens[0].Err != nil || opens[0].Duration != connect ||
					last.Err == nil || last.Duration != connect || last.Pool != "orders" {
					t.Errorf("observed %+v", opens)
				}
				if n := len(w.of(semaphore.ObservedWait)); int64(n) != statsOf(t, db).Waits {
					t.Errorf("%d waits observed, of %d", n, statsOf(t, db).Waits)
				}
				for _, c := range append(held, taken) {
					_ = c.Close()
				}
				must(t)(nil, db.Close())
				time.Sleep(time.Minute)
				want = PoolStats{Opened: 3, OpenTime: 3 * connect, Failed: 1, Timeouts: 1}
				is("after Close", want)
			})
		})
	}
}

// In PerCheckout a connection with a prepared statement lies idle in its wrapper.
func TestIdleStatementsAreCounted(t *testing.T) {
	world.Run(t, func(t *testing.T, _ *world.World) {
		b := newBench(t, 3, full, Config{Scope: PerCheckout})
		is := func(when string, inUse, idle int) {
			t.Helper()
			if got := statsOf(t, b.db); got.InUse != inUse || got.Idle != idle {
				t.Errorf("%s: %d in use, %d idle, want %d and %d", when, got.InUse, got.Idle,
					inUse, idle)
			}
		}
		st, err := b.db.Prepare("x")
		must(t)(st, err)
		is("prepared", 0, 1)
		for range 3 {
			must(t)(st.Exec())
			is("executed", 0, 1)
		}
		tx, err := b.db.Begin()
		must(t)(tx, err)
		is("checked out", 1, 0)
		must(t)(nil, tx.Rollback())
		is("rolled back", 0, 1)
		must(t)(nil, st.Close())
		is("the statement is closed", 0, 1)
		must(t)(b.db.Exec("x"))
		is("used again", 0, 1)
		b.fleet.mu.Lock()
		b.fleet.err = semaphore.ErrUnavailable
		b.fleet.mu.Unlock()
		b.db.SetMaxIdleConns(-1) // closes it
		time.Sleep(time.Minute)
		is("closed", 0, 0)
		_ = b.db.Close()
		time.Sleep(time.Minute)
	})
}

// A checkout that waits with its connection, to which a statement is bound, is observed, too.
func TestPinnedWaitsAreObserved(t *testing.T) {
	inWatched(t, 2, func(t *testing.T, w *watched) {
		inner := &fakeConnector{&server{t: t}, full}
		db := OpenDB(inner, w.sem, Config{Scope: PerCheckout, PoolName: "orders"})
		other := OpenDB(inner, w.sem, Config{PoolName: "other"})
		ctx := context.Background()
		st, err := db.Prepare("x")
		must(t)(st, err)
		first, err := db.Conn(ctx)
		must(t)(first, err)
		must(t)(st.Exec()) // on a second connection
		must(t)(nil, first.Close())
		if got := statsOf(t, db); got.Idle != 2 {
			t.Fatalf("%+v: bug in the test", got)
		}
		held, err := other.Conn(ctx)
		must(t)(held, err)
		first, err = db.Conn(ctx)
		must(t)(first, err)
		before, seen := statsOf(t, db), len(w.of(semaphore.ObservedWait))
		time.AfterFunc(100*time.Millisecond, func() { _ = first.Close() })
		must(t)(st.Exec())
		got, waits := statsOf(t, db), w.of(semaphore.ObservedWait)[seen:]
		n, waited := got.Waits-before.Waits, got.WaitTime-before.WaitTime
		if n != 1 || waited < 100*time.Millisecond || got.Opened != 2 || len(waits) != 1 ||
			waits[0].Duration != waited {
			t.Errorf("%d waits of %v, observed %+v, opened %d", n, waited, waits, got.Opened)
		}
		_ = held.Close()
		must(t)(nil, st.Close())
		must(t)(nil, db.Close())
		must(t)(nil, other.Close())
		time.Sleep(time.Minute)
	})
}

// A claim of a connection that is returned to a waiting caller is one wait, and one observation.
func TestHandOversAreWaits(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			inWatched(t, 1, func(t *testing.T, w *watched) {
				s := &server{t: t, onExec: func(context.Context, string) error {
					time.Sleep(10 * time.Millisecond)
					return nil
				}}
				db := OpenDB(&fakeConnector{s, full}, w.sem, Config{Scope: scope})
				var wg sync.WaitGroup
				for range 4 { // at once: they wait 0, 10, 20 and 30 ms, but for the grant
					wg.Go(func() { must(t)(db.Exec("x")) })
				}
				wg.Wait()
				got := statsOf(t, db)
				const least = 60 * time.Millisecond
				if got.Waits < 3 || got.Waits > 4 ||
					got.WaitTime < least || got.WaitTime > least+time.Millisecond {
					t.Errorf("%d waits, %v together", got.Waits, got.WaitTime)
				}
				sum := time.Duration(0)
				waits := w.of(semaphore.ObservedWait)
				for _, o := range waits {
					sum += o.Duration
				}
				if int64(len(waits)) != got.Waits || sum != got.WaitTime {
					t.Errorf("observed %+v, of %d waits of %v", waits, got.Waits, got.WaitTime)
				}
				if got.Timeouts+got.Canceled+got.Unavailable != 0 {
					t.Errorf("%+v", got)
				}
				must(t)(nil, db.Close())
				time.Sleep(time.Minute)
			})
		})
	}
}

// The default name tells the server and the database, where that is known, and no secret.
func TestPoolNames(t *testing.T) {
	config := fakepg.Config(t)
	config.Database, config.Password = "orders", "secret"
	ipv6 := config.Copy()
	ipv6.Host, ipv6.Port = "::1", 6432
	socket := config.Copy()
	socket.Host, socket.Database = "/var/run/postgresql", ""
	registered := stdlib.RegisterConnConfig(config)
	defer stdlib.UnregisterConnConfig(registered)
	fake := &fakeConnector{&server{t: t}, full}
	std := stdlib.GetDefaultDriver()
	fromDSN := func(dsn string) driver.Connector {
		c, err := followDriver(std, dsn)
		must(t)(c, err)
		return c
	}
	for want, c := range map[string]driver.Connector{
		"db.example:5433/orders": fromDSN(
			"postgres://ann:secret@db.example:5433/orders?sslmode=disable"),
		"first:5432/ann":        fromDSN("host=first,second user=ann password=secret"),
		"127.0.0.1:5432/orders": stdlib.GetConnector(*config),
		"[::1]:6432/orders":     stdlib.GetConnector(*ipv6),
		"/var/run/postgresql:5432/x": stdlib.GetConnector(*socket, stdlib.OptionAfterConnect(
			func(context.Context, *pgx.Conn) error { return nil })),
		"pool":  fake,
		"pool ": fromDSN(registered),
	} {
		cn := newConnector(c, c.Driver(), nil, Config{})
		db := sql.OpenDB(cn)
		if got := statsOf(t, db).Name; got != strings.TrimSpace(want) {
			t.Errorf("%q, want %q", got, want)
		}
		_ = db.Close()
	}
	cn := newConnector(stdlib.GetConnector(*config), std, nil, Config{PoolName: "reports\x1b[31m"})
	if got := cn.a.Report().Name; got != "reports[31m" {
		t.Errorf("%q", got)
	}
}

// Pools of one semaphore in one process have names of their own, and leave them when they close.
func TestNamesAreUnique(t *testing.T) {
	inWatched(t, 5, func(t *testing.T, w *watched) {
		s := &server{t: t}
		open := func() *sql.DB {
			db := OpenDB(&fakeConnector{s, full}, w.sem, Config{PoolName: "orders"})
			must(t)(db.Exec("x"))
			return db
		}
		first, second, third := open(), open(), open()
		for db, want := range map[*sql.DB]string{
			first: "orders", second: "orders (2)", third: "orders (3)",
		} {
			if got := statsOf(t, db).Name; got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		var names []string
		for _, p := range w.sem.Stats().Pools {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, ", "); got != "orders, orders (2), orders (3)" {
			t.Errorf("the session has %s", got)
		}
		must(t)(nil, second.Close())
		time.Sleep(time.Minute)
		fourth := open()
		if got := statsOf(t, fourth).Name; got != "orders (2)" {
			t.Errorf("%q, want the name that is free", got)
		}
		for _, db := range []io.Closer{first, third, fourth} {
			must(t)(nil, db.Close())
		}
		time.Sleep(time.Minute)
	})
}
