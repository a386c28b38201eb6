package env

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
)

// A program is capped by its driver name alone, and the server sees none of our keys.
func TestCapped(t *testing.T) {
	for _, driverName := range drivers {
		t.Run(driverName, func(t *testing.T) {
			w := newWorld(t)
			t.Setenv("PASSBUDDY_NAME", "orders")
			t.Setenv("PASSBUDDY_CAPACITY", "1")
			db := w.open(driverName, w.dsn("passbuddy_acquire_timeout=20s passbuddy_owner='a b'"))
			held, err := db.Conn(ctxb)
			ok(t, err)
			ok(t, held.PingContext(ctxb))
			second := make(chan error, 1)
			go func() { second <- db.Ping() }()
			w.eventually("a second caller waits", func() bool {
				s, _ := passbuddy.Stats(db)
				return s.Waiting == 1
			})
			if s, is := passbuddy.Stats(db); !is || s.InUse != 1 ||
				s.Name != fmt.Sprintf("127.0.0.1:%d/x", w.port) {
				t.Errorf("Stats: %v, %+v", is, s)
			}
			if _, is := db.Driver().(*envDriver); !is {
				t.Errorf("the DB's driver is %T", db.Driver())
			}
			ok(t, held.Close())
			ok(t, <-second)
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.started) != 1 {
				t.Errorf("%d connects", len(w.started))
			}
			for _, p := range w.started {
				if p["application_name"] != "app" {
					t.Errorf("the server is told %q", p)
				}
				for key := range p {
					if strings.HasPrefix(strings.ToLower(key), "passbuddy") {
						t.Errorf("the server is told %q", p)
					}
				}
			}
		})
	}
}

// The DBs of one semaphore share a session, from the first connect to the last Close.
func TestOneSession(t *testing.T) {
	w := newWorld(t)
	a, b := w.open("passbuddy", w.dsn()), w.open("passbuddy-pq", w.dsn())
	other := w.open("passbuddy", w.dsn("passbuddy_name=other"))
	unused := w.open("passbuddy", w.dsn())
	w.expect("semaphore", 0)
	for _, db := range []*sql.DB{a, b, other} {
		ok(t, db.Ping())
	}
	w.expect("semaphore", 1)
	w.expect("other", 1)
	ok(t, a.Close())
	ok(t, unused.Close())
	w.expect("semaphore", 1)
	ok(t, b.Ping())
	ok(t, b.Close())
	w.expect("semaphore", 0)
	w.expect("other", 1)
	again := w.open("passbuddy", w.dsn())
	ok(t, again.Ping())
	w.expect("semaphore", 1)
	ok(t, again.Close())
	ok(t, again.Close())
	w.expect("semaphore", 0)
	ok(t, other.Close())
	w.expect("other", 0)
}

// A connection that is checked out when its DB closes lives on, and the session with it.
func TestCloseBeforeReturn(t *testing.T) {
	for _, driverName := range drivers {
		w := newWorld(t)
		db := w.open(driverName, w.dsn())
		held, err := db.Conn(ctxb)
		ok(t, err)
		ok(t, db.Close())
		ok(t, held.PingContext(ctxb))
		w.expect("semaphore", 1)
		ok(t, held.Close())
		w.eventually("the session ends", func() bool { return w.sessions("semaphore") == 0 })
	}
}

// Two DBs cannot have different sessions of one semaphore, one after the other can.
func TestDisagreement(t *testing.T) {
	w := newWorld(t)
	a := w.open("passbuddy", w.dsn("passbuddy_capacity=3"))
	ok(t, a.Ping())
	b := w.open("passbuddy", w.dsn("passbuddy_capacity=4"))
	if err := b.Ping(); err == nil || !strings.Contains(err.Error(),
		"the passbuddy_capacity of one is 3, that of the other 4") {
		t.Errorf("got %v", err)
	}
	ok(t, a.Close())
	ok(t, b.Ping())
	// Settings of a pool may differ.
	c := w.open("passbuddy", w.dsn("passbuddy_capacity=4 passbuddy_scope=checkout passbuddy_pool_name=c"))
	ok(t, c.Ping())
	w.expect("semaphore", 1)
}

// PASSBUDDY_DISABLE opens the bare driver, and needs no Redis.
func TestDisabled(t *testing.T) {
	for _, driverName := range drivers {
		w := newWorld(t)
		os.Unsetenv("PASSBUDDY_REDIS_URL")
		if _, err := sql.Open(driverName, w.dsn()); err == nil ||
			!strings.Contains(err.Error(), "PASSBUDDY_REDIS_URL") {
			t.Errorf("without a Redis: %v", err)
		}
		t.Setenv("PASSBUDDY_DISABLE", "1")
		t.Setenv("PASSBUDDY_CAPACITY", "1")
		db := w.open(driverName, w.dsn("passbuddy_name=x"))
		var held []*sql.Conn
		for range 3 {
			c, err := db.Conn(ctxb)
			ok(t, err)
			ok(t, c.PingContext(ctxb))
			held = append(held, c)
		}
		ok(t, held[0].Raw(func(c any) error {
			if _, wrapped := c.(passbuddy.RawConn); wrapped {
				t.Errorf("%s: the connection is wrapped", driverName)
			}
			return nil
		}))
		for _, c := range held {
			ok(t, c.Close())
		}
		if _, err := sql.Open(driverName, w.dsn("passbuddy_nam=x")); err == nil {
			t.Error("an unknown key is no error where it is disabled")
		}
	}
}

// A program whose connections are not counted is told so, once.
func TestDisabledIsLogged(t *testing.T) {
	const child = "PASSBUDDY_TEST_DISABLED"
	if os.Getenv(child) != "" {
		for range 2 {
			db, err := sql.Open("passbuddy", "host=127.0.0.1")
			ok(t, err)
			ok(t, db.Close())
		}
		return
	}
	newWorld(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestDisabledIsLogged$")
	cmd.Env = append(os.Environ(), child+"=1", "PASSBUDDY_DISABLE=1")
	out, err := cmd.CombinedOutput()
	ok(t, err)
	if n := strings.Count(string(out), "connections are not counted"); n != 1 {
		t.Errorf("it is told so %d times:\n%s", n, out)
	}
}

func TestService(t *testing.T) {
	for _, driverName := range drivers {
		w := newWorld(t)
		file := filepath.Join(t.TempDir(), "services.conf")
		ok(t, os.WriteFile(file, fmt.Appendf(nil, "[orders]\nhost=127.0.0.1\nport=%d\nuser=x\n"+
			"dbname=x\nsslmode=disable\napplication_name=fromfile\npassbuddy_name=fromfile\n",
			w.port), 0o600))
		t.Setenv("PGSERVICEFILE", file)
		for _, dsn := range []string{"service=orders", "postgres:///?service=orders", ""} {
			if dsn == "" {
				t.Setenv("PGSERVICE", "orders")
			}
			db := w.open(driverName, dsn)
			ok(t, db.Ping())
			w.expect("fromfile", 1)
			ok(t, db.Close())
		}
		w.mu.Lock()
		if n := len(w.started); n != 3 || w.started[2]["application_name"] != "fromfile" {
			t.Errorf("%s: the server was told %q", driverName, w.started)
		}
		w.mu.Unlock()
	}
}

// Callers that do not know driver.DriverContext get connections of one pool.
func TestPlainOpen(t *testing.T) {
	w := newWorld(t)
	d := &envDriver{base: pgxBase{}}
	dsn := w.dsn()
	var open []driver.Conn
	for range 2 {
		c, err := d.Open(dsn)
		ok(t, err)
		open = append(open, c)
	}
	if permits, err := w.redis.ZMembers("passbuddy-semaphore"); err != nil || len(permits) != 2 {
		t.Errorf("%d permits (%v), want 2", len(permits), err)
	}
	if len(d.connectors) != 1 {
		t.Errorf("%d pools", len(d.connectors))
	}
	w.expect("semaphore", 1)
	for _, c := range open {
		ok(t, c.Close())
	}
	ok(t, d.connectors[dsn].(*connector).Close())
	if _, err := d.Open("passbuddy_x=1"); err == nil {
		t.Error("an unknown key is no error")
	}
}

// The name of a configuration that was registered with stdlib works as it does with stdlib.
func TestRegisteredConfiguration(t *testing.T) {
	w := newWorld(t)
	cfg, err := pgx.ParseConfig(w.dsn())
	ok(t, err)
	name := stdlib.RegisterConnConfig(cfg)
	defer stdlib.UnregisterConnConfig(name)
	db := w.open("passbuddy", name)
	ok(t, db.Ping())
	w.expect("semaphore", 1)
	ok(t, db.Close())
	w.expect("semaphore", 0)
	db = w.open("passbuddy", "s3cret")
	if err := db.Ping(); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("no such name: %v", err)
	}
}
