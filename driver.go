package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Register makes d available to [sql.Open] under driverName, with its connections counted against
// sem. Each sql.DB opened with it has its own part of the semaphore's permits.
//
// Like [sql.Register] it is for a program's start and panics on a programmer's bug: a nil driver or
// semaphore, a Config that is refused, a name that is taken. The message names which.
//
// Call SetMaxIdleConns on the DB that sql.Open returns, with the semaphore's capacity; see the
// package documentation.
func Register(driverName string, d driver.Driver, sem *semaphore.Semaphore, cfg Config) {
	w := newWrappedDriver(d, sem, cfg)
	if w.err != nil {
		panic("passbuddy: Register: " + strings.TrimPrefix(w.err.Error(), "passbuddy: "))
	}
	if slices.Contains(sql.Drivers(), driverName) {
		panic(fmt.Sprintf(
			"passbuddy: Register: a driver named %q is registered already", driverName))
	}
	sql.Register(driverName, w)
}

// WrapDriver is Register for those who register, or open, by themselves. The result implements
// [driver.DriverContext].
//
// A nil argument or a Config that is refused makes every Open, OpenConnector and Connect return an
// error that names it.
func WrapDriver(d driver.Driver, sem *semaphore.Semaphore, cfg Config) driver.Driver {
	return newWrappedDriver(d, sem, cfg)
}

// WrapConnector counts the connections that c makes against sem. Use one result for one
// [sql.OpenDB].
//
// A nil argument or a Config that is refused makes every Connect return an error that names it.
func WrapConnector(c driver.Connector, sem *semaphore.Semaphore, cfg Config) driver.Connector {
	cfg, err := cfg.withDefaults()
	switch {
	case isNil(c):
		err = errors.New("passbuddy: WrapConnector: connector is nil")
	case sem == nil:
		err = errors.New("passbuddy: WrapConnector: semaphore is nil")
	case err == nil:
		err = cfg.suits(c.Driver())
	}
	if err != nil {
		return &refusedConnector{inner: c, err: err}
	}
	return newConnector(followConnector(c), c.Driver(), fromSemaphore(sem), cfg)
}

// OpenDB is [sql.OpenDB] with the connections counted against sem, and as many idle ones kept as
// the semaphore has permits: they are given back when another process needs them.
//
// A nil argument or a Config that is refused makes every use of the DB return an error that names
// it.
func OpenDB(c driver.Connector, sem *semaphore.Semaphore, cfg Config) *sql.DB {
	wrapped := WrapConnector(c, sem, cfg)
	db := sql.OpenDB(wrapped)
	if cn, ok := wrapped.(*connector); ok {
		cn.db.Store(db)
		// One wrapper may be without a connection: see age.go.
		db.SetMaxIdleConns(sem.Engine(engine.Seam{}).Capacity() + 1)
	}
	return db
}

// wrappedDriver is WrapDriver's result.
type wrappedDriver struct {
	inner  driver.Driver
	engine engineSource
	cfg    Config
	err    error

	mu         sync.Mutex
	connectors map[string]driver.Connector // by dsn, for Open alone
}

var (
	_ driver.Driver        = (*wrappedDriver)(nil)
	_ driver.DriverContext = (*wrappedDriver)(nil)
)

func newWrappedDriver(d driver.Driver, sem *semaphore.Semaphore, cfg Config) *wrappedDriver {
	cfg, err := cfg.withDefaults()
	switch {
	case isNil(d):
		err = errors.New("passbuddy: driver is nil")
	case sem == nil:
		err = errors.New("passbuddy: semaphore is nil")
	case err == nil:
		err = cfg.suits(d)
	}
	return &wrappedDriver{
		inner: d, engine: fromSemaphore(sem), cfg: cfg, err: err,
		connectors: make(map[string]driver.Connector),
	}
}

// OpenConnector is called once by each sql.Open, so each DB has an allotment of its own.
func (d *wrappedDriver) OpenConnector(dsn string) (driver.Connector, error) {
	if d.err != nil {
		return nil, d.err
	}
	inner, err := followDriver(d.inner, dsn)
	if err != nil {
		return nil, err
	}
	return newConnector(inner, d, d.engine, d.cfg), nil
}

// Open is for callers that do not know DriverContext. Those with the same dsn share one allotment,
// for as long as the driver lives.
func (d *wrappedDriver) Open(dsn string) (driver.Conn, error) {
	d.mu.Lock()
	c, ok := d.connectors[dsn]
	if !ok {
		var err error
		if c, err = d.OpenConnector(dsn); err != nil {
			d.mu.Unlock()
			return nil, err
		}
		d.connectors[dsn] = c
	}
	d.mu.Unlock()
	return c.Connect(context.Background())
}

// dsnConnector stands in for a driver without DriverContext, as in database/sql: the driver never
// sees the context.
type dsnConnector struct {
	dsn    string
	driver driver.Driver
}

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c dsnConnector) Driver() driver.Driver                        { return c.driver }

// refusedConnector is WrapConnector's result where it can only fail.
type refusedConnector struct {
	inner driver.Connector
	err   error
}

func (c *refusedConnector) Connect(context.Context) (driver.Conn, error) { return nil, c.err }

func (c *refusedConnector) Driver() driver.Driver {
	if isNil(c.inner) {
		return &wrappedDriver{err: c.err}
	}
	return c.inner.Driver()
}

// engineSource joins an allotment to the engine. leave takes it out again, once it holds nothing.
type engineSource func(*allotment.Allotment) (leave func(), err error)

func fromSemaphore(sem *semaphore.Semaphore) engineSource {
	return func(a *allotment.Allotment) (func(), error) {
		share, err := a.Join(sem.Engine(engine.Seam{}))
		if err != nil {
			return nil, err
		}
		return share.Close, nil
	}
}

func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	return r.Kind() == reflect.Pointer && r.IsNil()
}
