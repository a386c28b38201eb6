package passbuddy

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/semaphore"
)

// This file is PerCheckout: a permit covers a connection from its checkout to its return. While it
// is idle a wrapper is empty, and its connection lies in the connector's idleList:
//
//	           Connect, ResetSession, or the first operation:
//	           a permit first, then an idle connection or a dial
//	empty ---------------------------------------------------------> held
//	  ^                                                               |
//	  +---------------------------------------------------------------+
//	           IsValid: the connection to the list, then the permit back
//
// database/sql uses a prepared statement past the wrapper, and takes the wrapper for the
// connection. So a connection with statements stays in its wrapper while that is idle (pinned).
// Such a wrapper never becomes empty, but ends with its connection. If callers wait, IsValid has
// database/sql close the statements and the wrapper. Then closeCheckout puts the connection into
// the list.

// acquireCheckout waits for a permit and returns it with a connection.
//
// A waiting caller holds no connection, so it keeps none from others. A local return always reaches
// it, by the queue of the allotment and by the list. So it may wait inside Connect.
func (cn *connector) acquireCheckout(ctx context.Context) (checkout, error) {
	slot, err := cn.enterCheckout(ctx)
	if err != nil {
		return checkout{}, err
	}
	ph, err := cn.takeOrDial(ctx, slot)
	if err != nil {
		slot.Gone()
		return checkout{}, err
	}
	// A lease lost before this is found here. One lost later is told to breakUnder, which finds ph
	// under slot.
	if !slot.Attach(ph) {
		if !cn.idle.put(nil, ph) {
			ph.close()
		}
		slot.Gone()
		return checkout{}, fmt.Errorf("passbuddy: while connecting: %w", semaphore.ErrLost)
	}
	return checkout{ph: ph, slot: slot}, nil
}

// takeOrDial returns a connection under slot.
func (cn *connector) takeOrDial(ctx context.Context, slot *allotment.Slot) (*physical, error) {
	for {
		ph := cn.idle.take(slot)
		if ph == nil {
			break
		}
		// IsValid was asked at the return, and nobody had the connection since.
		if (ph.pgx == nil || !ph.pgx.IsClosed()) && ph.resetSession(ctx) {
			return ph, nil
		}
		cn.idle.setSlot(ph, nil) // the permit stays here
		ph.close()
		if ctx.Err() != nil {
			// The driver may have failed because of that, and would fail with all the others too.
			return nil, fmt.Errorf("passbuddy: while resetting an idle connection: %w",
				engine.ContextError(ctx))
		}
	}
	began := time.Now()
	cn.dials.Add(1)
	ph, err := cn.dial(ctx, nil)
	cn.dials.Add(-1)
	cn.countOpen(began, err)
	if err == nil {
		cn.idle.setSlot(ph, slot)
	}
	return ph, err
}

// enterCheckout waits for a permit that covers one checkout. Gone gives it back.
func (cn *connector) enterCheckout(ctx context.Context) (*allotment.Slot, error) {
	cn.idle.waiting.Add(1)
	defer cn.idle.waiting.Add(-1)
	if _, err := cn.a.Enter(ctx, false); err != nil {
		return nil, err
	}
	slot, err := cn.a.OpenWithin(ctx)
	if err == nil && !slot.CheckOut() {
		slot.Gone()
		err = fmt.Errorf("passbuddy: %w", semaphore.ErrLost)
	}
	if err != nil {
		cn.a.Exit()
		return nil, err
	}
	return slot, nil
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
	ctx = c.cn.a.Bounded(ctx, c.cn.closing) // the door, as in acquire
	defer c.cn.a.EndWait(ctx)
	for {
		if err := c.coverPinned(ctx); !c.cn.asksAgain(ctx, err) {
			return err
		}
	}
}

// coverPinned puts the connection that the wrapper holds under a permit.
func (c *conn) coverPinned(ctx context.Context) error {
	slot, err := c.cn.enterCheckout(ctx)
	if err != nil {
		return err
	}
	c.cn.idle.setSlot(c.ph, slot)
	if !slot.Attach(c.ph) {
		c.cn.idle.setSlot(c.ph, nil)
		slot.Gone()
		return fmt.Errorf("passbuddy: %w", semaphore.ErrLost)
	}
	c.cn.idle.countPinned(-1)
	c.slot, c.held = slot, true
	return nil
}

// resetCheckout is the checkout of a wrapper that was used before. database/sql ignores what
// ResetSession returns, except ErrBadConn. So if the checkout is refused, the operation that
// follows reports why.
//
// Two callers have no such operation. DB.Conn has none, and a prepared statement does not pass
// through a wrapper that holds its connection: it would run without a permit. They get ErrBadConn.
// database/sql then tries twice more on the same goroutine with the same context, the last time by
// Connect, which returns the error that refusals keeps for it.
//
// With SetMaxOpenConns the last try can get a returned wrapper instead, and ErrBadConn would reach
// the user. If that wrapper is empty, each operation on it passes through it: DB.Conn succeeds, and
// they report the error.
func (c *conn) resetCheckout(ctx context.Context) error {
	if c.cn.cfg.Scope == PerCheckout {
		c.cn.idle.checkedOut(c)
	}
	empty := c.ph == nil
	if err, last := c.cn.refusals.again(ctx, false); err != nil {
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
		// The caller that gets this permit has a wrapper without these statements, and would dial.
		// So database/sql closes them now, over this connection: the permit covers that too.
		c.parking = true
		return false
	case ph.pinned != allotment.Free:
		c.cn.idle.setSlot(ph, nil)
		c.cn.idle.countPinned(1)
		c.slot.Gone()
		c.slot, c.held = nil, false
		return true
	}
	ph.statements = false // those of a transaction, which were closed with it
	slot := c.slot
	c.ph, c.slot, c.held = nil, nil, false
	if !c.cn.idle.put(c, ph) {
		ph.close() // the permit comes back with the end of the backend
		return true
	}
	slot.Gone() // after put, so that the caller that gets the permit finds the connection
	return true
}

// closeCheckout is Close. database/sql may close a wrapper at rest, or one that is checked out:
// after an error, or because returnCheckout wanted it.
func (c *conn) closeCheckout() error {
	if c.closed {
		return nil
	}
	c.closed = true
	ph, slot := c.ph, c.slot
	if ph != nil && !c.held {
		c.cn.idle.countPinned(-1)
	}
	c.ph, c.slot, c.held = nil, nil, false
	// After put, so that a connection that is put back here counts when the surplus is looked for.
	defer c.cn.idle.wrapperClosed(c, ph == nil && c.resting && closedForAge())
	if ph == nil {
		return nil
	}
	if c.parking && ph.valid() {
		ph.setPin(allotment.Free)
		ph.statements = false
		if c.cn.idle.put(nil, ph) {
			slot.Gone()
			return nil
		}
	}
	// The permit of a connection that is closed while checked out is given back when its backend is
	// gone: the backend may still be at work.
	return ph.closeByWrapper()
}
