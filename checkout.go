package passbuddy

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// This file is PerCheckout: a permit covers a connection from its checkout to its return. While it is
// idle a wrapper is empty, and its connection lies in the connector's idleList:
//
//	           Connect, ResetSession, or the first operation:
//	           a permit first, then an idle connection or a dial
//	empty ---------------------------------------------------------> held
//	  ^                                                               |
//	  +---------------------------------------------------------------+
//	           IsValid: the connection to the list, then the permit back
//
// A prepared statement is database/sql's, which uses it past the wrapper and takes the wrapper for its
// connection. So a connection with statements stays in its wrapper while that is idle (pinned), and
// the wrapper ends with it: it never becomes empty. If callers wait, IsValid has database/sql
// close the wrapper, and so the statements. Then the connection is free for the list (see Close).

// acquireCheckout waits for a permit and returns it with a connection.
//
// It waits with empty hands. So a waiting caller keeps no connection from others, and a local return
// always serves it: by the queue of the allotment and by the list.
func (cn *connector) acquireCheckout(ctx context.Context) (checkout, error) {
	unit, err := cn.enterCheckout(ctx)
	if err != nil {
		return checkout{}, err
	}
	ph, err := cn.takeOrDial(ctx, unit)
	if err != nil {
		unit.Gone()
		return checkout{}, err
	}
	// A lease lost before this is found here; one lost later is told to breaks, which finds ph under unit.
	if !unit.Attach(ph) {
		if !cn.idle.put(nil, ph) {
			_ = ph.end(inBackground)
		}
		unit.Gone()
		return checkout{}, fmt.Errorf("passbuddy: while connecting: %w", semaphore.ErrLost)
	}
	return checkout{ph: ph, unit: unit}, nil
}

// takeOrDial returns a connection under unit.
func (cn *connector) takeOrDial(ctx context.Context, unit *allotment.Conn) (*physical, error) {
	for {
		ph := cn.idle.take(unit)
		if ph == nil {
			break
		}
		if ph.resetForCheckout(ctx) {
			return ph, nil
		}
		cn.idle.cover(ph, nil) // the permit stays here
		_ = ph.end(inBackground)
		if err := ctx.Err(); err != nil {
			// The driver may have failed because of that, and would fail with all the others too.
			return nil, err
		}
	}
	ph, err := cn.dial(ctx, nil)
	if err == nil {
		cn.idle.cover(ph, unit)
	}
	return ph, err
}

// enterCheckout waits for a permit that covers one checkout. Gone gives it back.
func (cn *connector) enterCheckout(ctx context.Context) (*allotment.Conn, error) {
	cn.idle.waiting.Add(1)
	defer cn.idle.waiting.Add(-1)
	if _, err := cn.a.Enter(ctx, false); err != nil {
		return nil, err
	}
	unit, err := cn.permit(ctx)
	if err == nil && !unit.CheckOut() {
		unit.Gone()
		err = fmt.Errorf("passbuddy: %w", semaphore.ErrLost)
	}
	if err != nil {
		cn.a.Exit()
		return nil, err
	}
	return unit, nil
}

// resetForCheckout is the driver's part of a checkout. IsValid was asked at the return, and nobody had
// the connection since.
func (ph *physical) resetForCheckout(ctx context.Context) bool {
	if ph.pgx != nil && ph.pgx.IsClosed() {
		return false
	}
	return ph.resetter == nil || !errors.Is(ph.resetter.ResetSession(ctx), driver.ErrBadConn)
}

// checkOut makes the wrapper hold a connection under a permit.
func (c *conn) checkOut(ctx context.Context) error {
	if c.ph == nil {
		held, err := c.cn.acquire(ctx)
		if err != nil {
			return err
		}
		c.hold(held)
		return nil
	}
	c.cn.begin()
	defer c.cn.done()
	unit, err := c.cn.enterCheckout(ctx)
	if err != nil {
		return err
	}
	c.cn.idle.cover(c.ph, unit)
	if !unit.Attach(c.ph) {
		c.cn.idle.cover(c.ph, nil)
		unit.Gone()
		return fmt.Errorf("passbuddy: %w", semaphore.ErrLost)
	}
	c.unit, c.held = unit, true
	return nil
}

// resetCheckout is the checkout of a wrapper that was used before. Where the permit or the connection is
// refused, the operation that follows reports it. But DB.Conn has none to report it, and a prepared
// statement would run without a permit, as it does not pass through the wrapper: for those it is
// ErrBadConn. database/sql then tries twice more with the same context, the last time by Connect,
// which can return the error; so the refusal is kept for it.
//
// With SetMaxOpenConns the last try can be a returned wrapper instead, and ErrBadConn would reach the
// user. If that wrapper is empty its operations all come through it: DB.Conn succeeds, and they fail.
func (c *conn) resetCheckout(ctx context.Context) error {
	c.cn.idle.checkedOut(c)
	empty := c.ph == nil
	if err, last := c.cn.refusals.again(ctx); err != nil {
		if !last || !empty {
			return driver.ErrBadConn
		}
		c.refused = err
		return nil
	}
	err := c.checkOut(ctx)
	switch {
	case err == nil:
	case operationFollows(empty):
		c.refused = neverBadConn(err)
	default:
		c.cn.refusals.add(ctx, neverBadConn(err))
		return driver.ErrBadConn
	}
	return nil
}

// returnCheckout ends the checkout. It reports whether the wrapper stays open.
func (c *conn) returnCheckout() bool {
	c.refused = nil
	ph := c.ph
	switch {
	case ph == nil:
		c.cn.idle.atRest(c)
		return true
	case !c.held: // pinned, and its checkout was refused
		return true
	case ph.pinned == allotment.Held && c.cn.a.Figures().Waiting > 0:
		// Whoever waits has a wrapper without these statements, and would dial. database/sql closes them now,
		// over this connection: the permit covers that too.
		c.parking = true
		return false
	case ph.pinned != allotment.Free:
		c.cn.idle.cover(ph, nil)
		c.unit.Gone()
		c.unit, c.held = nil, false
		return true
	}
	ph.statements = false // those of a transaction, which were closed with it
	unit := c.unit
	c.ph, c.unit, c.held = nil, nil, false
	if !c.cn.idle.put(c, ph) {
		_ = ph.end(inBackground) // the permit comes back with the end of the backend
		return true
	}
	unit.Gone() // after put, so that the caller who gets the permit finds the connection
	return true
}

// closeCheckout is Close. database/sql may close a wrapper at rest, or one that is checked out: after an
// error, or because returnCheckout wanted it.
func (c *conn) closeCheckout() error {
	if c.closed {
		return nil
	}
	c.closed = true
	ph, unit := c.ph, c.unit
	c.ph, c.unit, c.held = nil, nil, false
	// Last, for the shell of a connection that is put back must not be missed meanwhile.
	defer c.cn.idle.shellClosed(c, ph == nil && c.resting && closedForAge())
	if ph == nil {
		return nil
	}
	if c.parking && ph.valid() {
		ph.setPin(allotment.Free)
		ph.statements = false
		if c.cn.idle.put(nil, ph) {
			unit.Gone()
			return nil
		}
	}
	// The permit of a connection that is closed while checked out is given back when its backend is gone, which
	// may still be at work.
	return ph.end(ph.where())
}
