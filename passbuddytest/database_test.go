package passbuddytest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/passbuddytest"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A database is a driver without a network, whose connections answer pings.
type database struct{}

func (d database) Connect(context.Context) (driver.Conn, error) { return connection{}, nil }
func (d database) Driver() driver.Driver                        { return nil }

type connection struct{}

func (connection) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }
func (connection) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }
func (connection) Close() error                        { return nil }
func (connection) Ping(ctx context.Context) error      { return ctx.Err() }

// inScopes runs a test in and outside of a bubble, in both scopes.
func inScopes(t *testing.T, f func(t *testing.T, cfg passbuddy.Config)) {
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			inBoth(t, func(t *testing.T) {
				f(t, passbuddy.Config{Scope: scope, AcquireTimeout: time.Minute})
			})
		})
	}
}

// The permits of an idle connection are recalled by Exhaust, and those in use are shown as held.
func TestDatabaseAtCapacity(t *testing.T) {
	inScopes(t, func(t *testing.T, cfg passbuddy.Config) {
		f := passbuddytest.New(t, short(2))
		db := passbuddy.OpenDB(database{}, f.Semaphore(t), cfg)
		defer db.Close()
		if err := db.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		giveBack := f.Exhaust(t)
		f.RequireHeld(t, 2)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := db.PingContext(ctx); !errors.Is(err, semaphore.ErrCapacity) {
			t.Errorf("at capacity: %v, want ErrCapacity", err)
		}
		giveBack()
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.RequireHeld(t, 1)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		f.RequireNoLeak(t)
	})
}

// A connection in use is ended when its lease is, and the operation says why.
func TestDatabaseLosesItsLease(t *testing.T) {
	inScopes(t, func(t *testing.T, cfg passbuddy.Config) {
		f := passbuddytest.New(t, short(2))
		sem := f.Semaphore(t)
		db := passbuddy.OpenDB(database{}, sem, cfg)
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.Expire(t, sem)
		err = c.PingContext(t.Context())
		for began := time.Now(); err == nil && !isFake() && time.Since(began) < 30*time.Second; {
			err = c.PingContext(t.Context()) // outside of a bubble the pool may need a moment
		}
		if !errors.Is(err, semaphore.ErrLost) {
			t.Errorf("after the lease: %v, want ErrLost", err)
		}
		_ = c.Close()
		if err := db.PingContext(t.Context()); err != nil { // over a new connection
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		f.RequireNoLeak(t)
	})
}

// Two processes that take turns never hold more than the capacity.
func TestDatabasesShare(t *testing.T) {
	inScopes(t, func(t *testing.T, cfg passbuddy.Config) {
		f := passbuddytest.New(t, short(1))
		var dbs []*sql.DB
		for range 2 {
			dbs = append(dbs, passbuddy.OpenDB(database{}, f.Semaphore(t), cfg))
		}
		for range 3 {
			for _, db := range dbs {
				if err := db.PingContext(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, db := range dbs {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
		f.RequireNoLeak(t)
	})
}
