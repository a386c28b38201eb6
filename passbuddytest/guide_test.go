package passbuddytest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/passbuddytest"
	"github.com/passbuddy/passbuddy/semaphore"
)

// This file has the code of docs/TESTING.md.

// An importer is the code under test.
type importer struct{ sem *semaphore.Semaphore }

func (i importer) run(ctx context.Context, work func(context.Context) error) error {
	return i.sem.NewPermit().Do(ctx, work)
}

func TestImportGivesItsPermitBack(t *testing.T) {
	f := passbuddytest.New(t, passbuddytest.Config{Capacity: 2})
	code := importer{f.Semaphore(t)}
	err := code.run(t.Context(), func(context.Context) error {
		f.RequireHeld(t, 1)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.RequireNoLeak(t)
}

func TestImportWaitsForOtherProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, passbuddytest.Config{Capacity: 2})
		code := importer{f.Semaphore(t)}
		nothing := func(context.Context) error { return nil }

		release := f.Exhaust(t)
		err := code.run(t.Context(), nothing) // waits for 2.5s of fake time
		if !errors.Is(err, semaphore.ErrCapacity) {
			t.Errorf("at capacity: %v, want ErrCapacity", err)
		}
		time.AfterFunc(2*time.Second, release)
		if err := code.run(t.Context(), nothing); err != nil {
			t.Errorf("after another process gave its permits back: %v", err)
		}
		f.RequireNoLeak(t)
	})
}

func TestQueriesAtCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, passbuddytest.Config{Capacity: 2})
		own, mock, err := sqlmock.NewWithDSN("orders")
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		wrapped := passbuddy.WrapDriver(own.Driver(), f.Semaphore(t), passbuddy.Config{})
		connector, err := wrapped.(driver.DriverContext).OpenConnector("orders")
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(connector)

		release := f.Exhaust(t)
		err = db.PingContext(t.Context()) // waits for AcquireTimeout, 30s
		if !errors.Is(err, semaphore.ErrCapacity) {
			t.Errorf("at capacity: %v, want ErrCapacity", err)
		}
		release()
		mock.ExpectExec("delete from orders").WillReturnResult(sqlmock.NewResult(0, 7))
		if _, err := db.ExecContext(t.Context(), "delete from orders"); err != nil {
			t.Error(err)
		}
		f.RequireHeld(t, 1) // by the idle connection

		mock.ExpectClose()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		f.RequireNoLeak(t)
		mock.ExpectClose() // own's
	})
}

func TestImportWhenRedisFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, passbuddytest.Config{Capacity: 2})
		code := importer{f.Semaphore(t)}

		// The lease ends while the work goes on: its context ends.
		err := code.run(t.Context(), func(ctx context.Context) error {
			f.ExpireLeases(t)
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, semaphore.ErrLost) {
			t.Errorf("after the lease: %v, want ErrLost", err)
		}

		// A shorter outage, or a Redis that comes back empty, costs no permit.
		err = code.run(t.Context(), func(ctx context.Context) error {
			f.Down(t)
			time.Sleep(2 * time.Second)
			f.Up(t)
			f.Flush(t)
			f.RequireHeld(t, 1)
			return ctx.Err()
		})
		if err != nil {
			t.Errorf("during an outage: %v", err)
		}

		f.Down(t)
		err = code.run(t.Context(), func(context.Context) error { return nil })
		if !errors.Is(err, semaphore.ErrUnavailable) {
			t.Errorf("without Redis: %v, want ErrUnavailable", err)
		}
	})
}

func TestProgramByItsEnvironment(t *testing.T) {
	f := passbuddytest.New(t, passbuddytest.Config{Name: "imports", Capacity: 2})
	t.Setenv("REDIS_URL", f.URL(t))

	// The program does this when it starts.
	sem, err := semaphore.Open(t.Context(), os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "imports", Capacity: 2})
	if err != nil {
		t.Fatal(err)
	}
	err = importer{sem}.run(t.Context(), func(context.Context) error {
		f.RequireHeld(t, 1)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := sem.Close(); err != nil {
		t.Error(err)
	}
	f.RequireNoLeak(t)
}
