package passbuddy

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/semaphore"
)

// This file is about single backends. With Config.Fence each connection's backend is recorded, and
// this DB ends, or looks for, the recorded backends of other processes. With or without Fence, it
// ends backends of its own whose connections the network has lost.

var (
	_ allotment.BackendEnder = (*connector)(nil)
	_ allotment.SuspectEnder = (*connector)(nil)
)

// suits refuses a driver with which c cannot be kept. A wrapper around pgx's own driver hides the
// backend: PassBuddy must be inside of it.
func (c Config) suits(d driver.Driver) error {
	if _, ok := d.(*stdlib.Driver); c.Fence && !ok {
		return fmt.Errorf("passbuddy: Config.Fence needs pgx's stdlib driver, but got %T: "+
			"wrap pgx's driver with PassBuddy first, then add other wrappers around the result", d)
	}
	return nil
}

// recordBackend records the backend of a new connection. It asks the server and Redis.
//
// It refuses a connection whose socket we do not follow. When such a connection is closed, we only
// guess at the end of its backend. And while a prepared statement pins it, no backend of another
// process can be ended over it.
func (ph *physical) recordBackend(ctx context.Context, slot *allotment.Slot) error {
	switch {
	case ph.pgx == nil:
		return fmt.Errorf("passbuddy: Config.Fence: a %T holds no pgx connection", ph.inner)
	case ph.link == nil:
		return errors.New("passbuddy: Config.Fence cannot follow the socket of this connection: " +
			"open the DB by a DSN or by OpenDB(stdlib.GetConnector(config)), " +
			"not by the name of a registered configuration or from another pool")
	}
	return backend.Record(ctx, ph.cn.a, slot, ph.pgx.PgConn())
}

// lend is a [backend.Lender]'s. The connection is a caller's like any other, and goes to the next
// one afterwards. Nothing is opened for a DB that is closed, and connections that are still checked
// out of it are left alone.
func (cn *connector) lend(ctx context.Context, use func(*pgconn.PgConn)) error {
	if cn.isClosed() {
		return fmt.Errorf("passbuddy: this DB: %w", semaphore.ErrClosed)
	}
	held, err := cn.acquire(ctx)
	if err != nil {
		return err
	}
	defer cn.giveBack(held)
	if held.ph.pgx == nil { // a driver whose connections are of several kinds
		return fmt.Errorf("passbuddy: %T is no pgx connection: %w",
			held.ph.inner, semaphore.ErrClosed)
	}
	use(held.ph.pgx.PgConn())
	return nil
}
