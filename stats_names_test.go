package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy/internal/fakepg"
)

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
