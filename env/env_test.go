package env

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/internal/quiet"
	"github.com/passbuddy/passbuddy/semaphore"
)

func init() { quiet.Redis() }

var ctxb = context.Background()

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a Redis, and a Postgres that notes what clients ask for.
type world struct {
	t     *testing.T
	redis *miniredis.Miniredis
	port  uint16

	mu      sync.Mutex
	started []map[string]string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, redis: miniredis.RunT(t)}
	pg := &fakepg.Server{OnStart: func(parameters map[string]string) {
		w.mu.Lock()
		w.started = append(w.started, parameters)
		w.mu.Unlock()
	}}
	w.port = pg.Listen(t).Port
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "PASSBUDDY_") ||
			strings.HasPrefix(name, "PG") || name == "REDIS_URL" {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	t.Setenv("PASSBUDDY_REDIS_URL", "redis://"+w.redis.Addr())
	return w
}

// dsn is that of the server, in pairs, and with the settings given.
func (w *world) dsn(settings ...string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=x dbname=x sslmode=disable "+
		"application_name=app %s", w.port, strings.Join(settings, " "))
}

func (w *world) open(driverName, dsn string) *sql.DB {
	w.t.Helper()
	db, err := sql.Open(driverName, dsn)
	ok(w.t, err)
	w.t.Cleanup(func() { _ = db.Close() })
	return db
}

// sessions counts those of a semaphore in Redis.
func (w *world) sessions(name string) int {
	members, err := w.redis.ZMembers("{passbuddy-" + name + "}:sessions")
	if err != nil {
		return 0
	}
	return len(members)
}

func (w *world) expect(name string, sessions int) {
	w.t.Helper()
	if n := w.sessions(name); n != sessions {
		w.t.Errorf("%d sessions of %q, want %d", n, name, sessions)
	}
}

func (w *world) eventually(what string, yes func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !yes(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("never: %s", what)
		}
	}
}

var drivers = []string{"passbuddy", "passbuddy-pgx", "passbuddy-pq"}

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

// However many callers connect first, one session comes of it, and one allotment.
func TestFirstConnects(t *testing.T) {
	w := newWorld(t)
	t.Setenv("PASSBUDDY_CAPACITY", "3")
	db := w.open("passbuddy", w.dsn())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := db.Ping(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.expect("semaphore", 1)
	ok(t, db.Close())
	w.expect("semaphore", 0)
}

// A Redis that cannot be reached fails a connect, and not the next one.
func TestTriedAgain(t *testing.T) {
	w := newWorld(t)
	db := w.open("passbuddy", w.dsn())
	w.redis.Close()
	if err := db.Ping(); !errors.Is(err, semaphore.ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	}
	ok(t, w.redis.Restart())
	ok(t, db.Ping())
	w.expect("semaphore", 1)
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

// silentRedis accepts connections and says nothing.
func silentRedis(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return "redis://" + l.Addr().String()
}

// A caller that waits for the semaphore to be opened gives up with its context, and learns of the
// Close of its DB.
func TestGivesUpOpening(t *testing.T) {
	w := newWorld(t)
	t.Setenv("PASSBUDDY_REDIS_URL", silentRedis(t))
	db := w.open("passbuddy", w.dsn())
	ctx, cancel := context.WithTimeout(ctxb, 10*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := db.PingContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's deadline: %v", err)
	}
	got := make(chan error)
	cn, err := (&envDriver{base: pgxBase{}}).OpenConnector(w.dsn())
	ok(t, err)
	go func() {
		_, err := cn.Connect(ctxb)
		got <- err
	}()
	ok(t, cn.(*connector).Close())
	if err := <-got; err == nil || err.Error() != "sql: database is closed" {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(began); took > 4*time.Second { // package semaphore gives up after 5s
		t.Errorf("they were told after %v", took)
	}
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

func TestRefused(t *testing.T) {
	w := newWorld(t)
	for _, driverName := range drivers {
		for dsn, want := range map[string]string{
			w.dsn("passbuddy_capacty=1"):                         "did you mean passbuddy_capacity?",
			w.dsn("passbuddy_ttl=1"):                             "unit",
			"postgres://h/d?passbuddy_name=a&passbuddy_name=b":   "twice",
			"host=h password=a b":                                "space",
			"postgres://u:s3cret@h:x/d?passbuddy_name=a":         "DSN",
			"postgres://h/d?passbuddy_redis=redis://r?db=s3cret": "percent-encode",
		} {
			db, err := sql.Open(driverName, dsn)
			if err == nil { // lib/pq parses at the first connect
				err = db.Ping()
				_ = db.Close()
			}
			if err == nil || !strings.Contains(err.Error(), want) ||
				strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s, %q: %v, want %q", driverName, dsn, err, want)
			}
		}
	}
	if _, err := sql.Open("passbuddy-pq", w.dsn("passbuddy_fence=1")); err == nil ||
		!strings.Contains(err.Error(), `"passbuddy"`) {
		t.Errorf("Fence with lib/pq: %v", err)
	}
	if _, err := registeredPQ("no such driver"); err == nil ||
		!strings.Contains(err.Error(), `import _ "github.com/lib/pq"`) {
		t.Errorf("without lib/pq: %v", err)
	}
}

// Fence reaches pgx's connections: each backend is recorded.
func TestFence(t *testing.T) {
	w := newWorld(t)
	db := w.open("passbuddy", w.dsn("passbuddy_fence=1"))
	ok(t, db.Ping())
	recorded, err := w.redis.HKeys("{passbuddy-semaphore}:backends")
	if err != nil || len(recorded) != 1 {
		t.Errorf("%d backends are recorded (%v), want 1", len(recorded), err)
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

// UsePQ takes lib/pq's NewConnector, and what it makes dials by passbuddy's Dialer.
func TestUsePQ(t *testing.T) {
	defer newPQ.Store(nil)
	w := newWorld(t)
	var made *pq.Connector
	var dialed bool
	UsePQ(func(dsn string) (*spy, error) {
		c, err := pq.NewConnector(dsn)
		made = c
		return &spy{c, &dialed}, err
	})
	db := w.open("passbuddy-pq", w.dsn())
	ok(t, db.Ping())
	if made == nil || !dialed {
		t.Error("the connector has no Dialer of passbuddy's")
	}
	UsePQ(pq.NewConnector)
	db = w.open("passbuddy-pq", w.dsn("passbuddy_name=n"))
	ok(t, db.Ping())
	w.expect("n", 1)
	if _, err := sql.Open("passbuddy-pq", "postgres://u:s3cret@h:x/d"); err == nil ||
		strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a DSN that lib/pq refuses: %v", err)
	}
	UsePQ(func(string) (*stranger, error) { return &stranger{}, nil })
	if _, err := sql.Open("passbuddy-pq", w.dsn()); err == nil ||
		!strings.Contains(err.Error(), "UsePQ") {
		t.Errorf("a connector of another kind: %v", err)
	}
}

// spy is a *pq.Connector that notes which dialer it is given.
type spy struct {
	*pq.Connector
	dialed *bool
}

func (s *spy) Dialer(d pq.Dialer) {
	_, *s.dialed = d.(*passbuddy.Dialer)
	s.Connector.Dialer(d)
}

// stranger takes dialers that passbuddy.Dialer is not.
type stranger struct{ driver.Connector }

func (*stranger) Dialer(interface{ Nothing() }) {}
