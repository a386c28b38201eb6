package passbuddy

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
)

// This file is Config.Fence for database/sql.

// suits refuses a driver with which c cannot be kept. What wraps pgx's own hides the backend: PassBuddy must be inside of it.
func (c Config) suits(d driver.Driver) error {
	if _, ok := d.(*stdlib.Driver); c.Fence && !ok {
		return fmt.Errorf("passbuddy: Config.Fence needs pgx's stdlib driver, this is a %T; let PassBuddy wrap pgx's, and other wrappers PassBuddy's", d)
	}
	return nil
}

// recordBackend records the backend of a new connection. It asks the server and Redis.
//
// It refuses a connection whose socket we do not follow: when that is closed we only guess at the end of its backend; and while a prepared
// statement pins it nobody could end another's by it.
func (ph *physical) recordBackend(ctx context.Context, slot *allotment.Slot) error {
	switch {
	case ph.pgx == nil:
		return fmt.Errorf("passbuddy: Config.Fence: there is no pgx connection in this %T", ph.inner)
	case ph.link == nil:
		return errors.New("passbuddy: Config.Fence cannot follow the socket of this connection: open the DB by a DSN or " +
			"by OpenDB(stdlib.GetConnector(config)), not by the name of a registered configuration or from another pool")
	}
	ctx, cancel := context.WithTimeout(ctx, ph.cn.cfg.AcquireTimeout)
	defer cancel()
	b, err := backend.Of(ctx, ph.pgx.PgConn())
	if err != nil {
		return err
	}
	return slot.RecordBackend(ctx, b)
}

var _ allotment.BackendEnder = (*connector)(nil)

// EndBackends implements [allotment.BackendEnder].
func (cn *connector) EndBackends(ctx context.Context, backends []allotment.Backend) []bool {
	return cn.askOf(ctx, backends, backend.End)
}

// BackendsGone implements [allotment.BackendEnder].
func (cn *connector) BackendsGone(ctx context.Context, backends []allotment.Backend) []bool {
	return cn.askOf(ctx, backends, backend.Gone)
}

// askOf asks something of those backends. Its connection is a caller's like any other; afterwards
// it lies parked. One that is checked out of a DB that is closed is left alone, and nothing is
// opened for it.
func (cn *connector) askOf(ctx context.Context, backends []allotment.Backend, ask backend.Asker) []bool {
	cn.mu.Lock()
	closed := cn.closed
	cn.mu.Unlock()
	if closed {
		return nil
	}
	held, err := cn.acquire(ctx)
	if err != nil {
		return nil
	}
	gone := ask(ctx, held.ph.pgx.PgConn(), backends)
	if !held.ph.valid() || !cn.park(held.slot) {
		held.slot.Leave()
		_ = held.ph.end(inBackground)
	}
	return gone
}
