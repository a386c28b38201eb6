package passbuddy_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

// idleDriver is a driver whose connections do no work.
type idleDriver struct{}

func (*idleDriver) Open(string) (driver.Conn, error)               { return idleConn{}, nil }
func (d *idleDriver) Connect(context.Context) (driver.Conn, error) { return idleConn{}, nil }
func (d *idleDriver) Driver() driver.Driver                        { return d }

type idleConn struct{}

func (idleConn) Prepare(string) (driver.Stmt, error) { return nil, fmt.Errorf("no statements") }
func (idleConn) Begin() (driver.Tx, error)           { return nil, fmt.Errorf("no transactions") }
func (idleConn) Close() error                        { return nil }

func newSem(t testing.TB) *semaphore.Semaphore {
	t.Helper()
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: m.Addr()})
	sem, err := semaphore.New(context.Background(), client,
		semaphore.Config{Capacity: 7, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close(); _ = client.Close(); m.Close() })
	return sem
}

func TestRegisterRefuses(t *testing.T) {
	sem := newSem(t)
	passbuddy.Register("taken", &idleDriver{}, sem, passbuddy.Config{})
	var nobody *idleDriver
	for want, register := range map[string]func(){
		"passbuddy: Register: driver is nil": func() {
			passbuddy.Register("x", nil, sem, passbuddy.Config{})
		},
		"passbuddy: Register: driver is nil ": func() {
			passbuddy.Register("x", nobody, sem, passbuddy.Config{})
		},
		"passbuddy: Register: semaphore is nil": func() {
			passbuddy.Register("x", &idleDriver{}, nil, passbuddy.Config{})
		},
		`passbuddy: Register: a driver named "taken" is registered already`: func() {
			passbuddy.Register("taken", &idleDriver{}, sem, passbuddy.Config{})
		},
		"passbuddy: Register: Config.AcquireTimeout is -1s: it must not be negative": func() {
			passbuddy.Register("x", &idleDriver{}, sem,
				passbuddy.Config{AcquireTimeout: -time.Second})
		},
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); got != strings.TrimSpace(want) {
					t.Errorf("panics with %q, want %q", got, want)
				}
			}()
			register()
		}()
	}
}

func TestWrapRefuses(t *testing.T) {
	sem := newSem(t)
	ctx := context.Background()
	bad := passbuddy.Config{FallbackConns: -3}
	fromDriver := func(d driver.Driver) error {
		conn, err := d.Open("")
		if err == nil {
			defer conn.Close() // the semaphore's Close would wait for it
		}
		_, err2 := d.(driver.DriverContext).OpenConnector("")
		if fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Errorf("Open says %v, OpenConnector %v", err, err2)
		}
		return err
	}
	fromConnector := func(c driver.Connector) error {
		if c.Driver() == nil {
			t.Error("the DB has no driver")
		}
		_, err := c.Connect(ctx)
		return err
	}
	fromDB := func(db *sql.DB) error { defer db.Close(); return db.Ping() }
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"driver, nil": {fromDriver(passbuddy.WrapDriver(nil, sem, passbuddy.Config{})),
			"driver is nil"},
		"driver, no sem": {
			fromDriver(passbuddy.WrapDriver(&idleDriver{}, nil, passbuddy.Config{})),
			"semaphore is nil"},
		"driver, config": {fromDriver(passbuddy.WrapDriver(&idleDriver{}, sem, bad)),
			"Config.FallbackConns is -3"},
		"connector, nil": {fromConnector(passbuddy.WrapConnector(nil, sem, passbuddy.Config{})),
			"connector is nil"},
		"connector, no sem": {
			fromConnector(passbuddy.WrapConnector(&idleDriver{}, nil, passbuddy.Config{})),
			"semaphore is nil"},
		"connector, config": {fromConnector(passbuddy.WrapConnector(&idleDriver{}, sem, bad)),
			"Config.FallbackConns is -3"},
		"db, nil": {fromDB(passbuddy.OpenDB(nil, sem, passbuddy.Config{})),
			"connector is nil"},
		"db, no sem": {fromDB(passbuddy.OpenDB(&idleDriver{}, nil, passbuddy.Config{})),
			"semaphore is nil"},
		"db, unknown scope": {
			fromDB(passbuddy.OpenDB(&idleDriver{}, sem, passbuddy.Config{Scope: 9})),
			"Config.Scope is Scope(9): it must be PerConnection or PerCheckout"},
		"driver, fine": {fromDriver(passbuddy.WrapDriver(&idleDriver{}, sem, passbuddy.Config{})),
			"<nil>"},
	} {
		if !strings.Contains(fmt.Sprint(c.err), c.want) {
			t.Errorf("%s: %v, want %s", name, c.err, c.want)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	if passbuddy.DefaultAcquireTimeout != 30*time.Second ||
		(passbuddy.Config{}).Scope != passbuddy.PerConnection {
		t.Errorf("the defaults are %v and %v",
			passbuddy.DefaultAcquireTimeout, passbuddy.Config{}.Scope)
	}
	if s := fmt.Sprint(passbuddy.PerConnection,
		passbuddy.PerCheckout); s != "PerConnection PerCheckout" {
		t.Error(s)
	}
}

// TestClosedSemaphoreRefuses: errors of the engine reach the caller.
func TestClosedSemaphoreRefuses(t *testing.T) {
	sem := newSem(t)
	_ = sem.Close()
	db := passbuddy.OpenDB(&idleDriver{}, sem, passbuddy.Config{})
	defer db.Close()
	if err := db.Ping(); err == nil || !strings.Contains(err.Error(), semaphore.ErrClosed.Error()) {
		t.Error(err)
	}
}
