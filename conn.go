package passbuddy

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// conn is the wrapper that database/sql has instead of the driver's connection. It refers to a
// physical connection, which it can lose while it lies idle in database/sql's free list.
//
//	        first operation            IsValid
//	empty -------------------> held --------------> idle
//	                            |  ^ ResetSession    |
//	                            |  +-----------------+
//	       Close after IsValid  |                    | another's Connect claims its physical, or
//	       (a caller waits, or  |                    | the fleet needs its permit
//	       it must be closed)   v                    v
//	                         closed                 lost: ErrBadConn at the next checkout
//
// Two can meet over an idle connection. For each such pair one place decides, under the allotment's
// lock, which of them may touch the physical connection:
//
//   - a claim (another caller's Connect) and ResetSession: Retake names the generation in which we
//     held it, and a claim begins a new one. If the claim was first, we report ErrBadConn without
//     having touched anything; if we were first, the claim finds nothing idle. A new wrapper may
//     even have used and returned the connection since: then it is idle, but in another generation.
//   - a claim and Close: the same, by LeaveAt.
//   - a claim that ends without a wrapper of its own (giveBack) and either of them: Unclaim goes back
//     to our generation only if neither was called in between.
//   - an eviction and ResetSession: the eviction makes it leave, and Retake takes only an idle one.
//   - an eviction and Close: the second finds that close was called (physical.closeBegun).
//   - an abort and anything: it only sets a flag and closes the socket, both of which can be done
//     at any time, and closes, as an eviction does, a connection that it finds idle.
//
// That is PerConnection. In PerCheckout the wrapper is empty while it is idle: see checkout.go.
//
// Its fields need no lock: database/sql calls one method at a time.
type conn struct {
	cn         *connector
	ph         *physical // nil: empty
	slot       *allotment.Slot
	generation uint32

	held    bool // checked out: operations may run
	parking bool // IsValid said no because a caller waits; Close hands the connection on

	// PerCheckout, see checkout.go.
	refused error     // why this checkout has no permit
	born    time.Time // before database/sql's count of its age begins: never taken for younger
	resting bool      // guarded by idleList.mu
	closed  bool

	// PerConnection, see age.go.
	clock    bool
	returned bool // IsValid said yes, and no checkout has followed

	txCtx context.Context // see BeginTx
}

// RawConn is the value that [database/sql.Conn.Raw] passes to its function when the driver is
// wrapped. Raw is the driver's own connection:
//
//	err := sqlConn.Raw(func(dc any) error {
//		pgxConn := dc.(passbuddy.RawConn).Raw().(*stdlib.Conn).Conn()
//		...
//	})
//
// The rules of sql.Conn.Raw hold for it: it must not be used after the function has returned. Raw
// returns nil if the connection is lost, or was not open yet and could not be opened; any other
// method of the wrapper, such as Ping, tells why.
type RawConn interface {
	driver.Conn
	Raw() driver.Conn
}

// shape says which of the optional interfaces a connection has that change what database/sql does.
type shape uint32

const (
	execs shape = 1 << iota
	queries
)

// wrapper is any of the four types below.
type wrapper interface {
	RawConn
	base() *conn
}

// database/sql checks arguments in another order where a connection has no Exec or Query of its
// own, so a wrapper must not have them either. All other interfaces have a fallback that makes no
// difference; see optional.go.
type (
	execConn      struct{ conn }
	queryConn     struct{ conn }
	execQueryConn struct{ execConn }
)

func newConn(cn *connector, s shape) wrapper {
	var w wrapper
	switch s {
	case execs | queries:
		w = new(execQueryConn)
	case execs:
		w = new(execConn)
	case queries:
		w = new(queryConn)
	default:
		w = new(conn)
	}
	w.base().cn = cn
	w.base().born = time.Now()
	return w
}

func (c *conn) base() *conn { return c }

// hold makes l the wrapper's connection, checked out.
func (c *conn) hold(l checkout) {
	c.ph, c.slot, c.generation = l.ph, l.slot, l.generation
	c.held = true
}

// empty undoes hold for a wrapper that database/sql's opener takes to the free list. Nothing tells
// us if it stays there, so it must not keep a permit.
func (c *conn) empty() {
	if c.cn.cfg.Scope == PerCheckout {
		c.returnCheckout() // it has no statements, so it stays open
		return
	}
	if !c.cn.park(c.slot) {
		c.ph.close()
	}
	c.ph, c.slot, c.held = nil, nil, false
}

// use is the first thing of every operation. It costs two loads when the connection is checked out.
func (c *conn) use(ctx context.Context) error {
	if c.held && !c.ph.broken.Load() {
		return nil
	}
	return c.useSlow(ctx)
}

func (c *conn) useSlow(ctx context.Context) error {
	switch {
	case c.refused != nil:
		return c.refused
	case c.ph != nil && c.ph.broken.Load():
		return c.toldBefore()
	case c.cn.cfg.Scope == PerCheckout:
		c.cn.idle.checkedOut(c)
		return neverBadConn(c.checkOut(ctx))
	case c.ph == nil:
		// Opened by database/sql's opener, and this is its first use.
		return neverBadConn(c.checkOut(ctx))
	case !c.slot.Retake(c.generation):
		return driver.ErrBadConn
	default:
		c.held = true
	}
	return nil
}

// ResetSession is the checkout of a connection that was used before. database/sql ignores every
// error but ErrBadConn.
func (c *conn) ResetSession(ctx context.Context) error {
	if c.cn.evictions.Load() > 0 && c.refuseEviction(ctx) {
		return driver.ErrBadConn // Close makes it leave
	}
	perCheckout := c.cn.cfg.Scope == PerCheckout
	empty := c.ph == nil
	c.returned = false
	if c.clock {
		c.readClock()
	}
	if !empty && (c.ph.broken.Load() || c.ph.moved.Load() && c.cn.tooOld(c.ph)) {
		return driver.ErrBadConn
	}
	if perCheckout || empty {
		if err := c.resetCheckout(ctx); err != nil || c.refused != nil || empty {
			return err
		}
	} else {
		if !c.slot.Retake(c.generation) {
			return driver.ErrBadConn
		}
		c.held = true
	}
	if c.ph.resetter != nil {
		return c.ph.resetter.ResetSession(ctx)
	}
	return nil
}

// IsValid is the return of the connection. If we say no, database/sql closes it, after the
// statements prepared on it: only then can the connection be handed on to a caller that waits here.
func (c *conn) IsValid() bool {
	perCheckout := c.cn.cfg.Scope == PerCheckout
	if c.ph == nil {
		c.refused, c.returned = nil, true
		return !perCheckout || c.returnCheckout()
	}
	tx := c.txCtx
	c.txCtx = nil
	if tx != nil && tx.Err() != nil && !endedByUser() {
		return false // see BeginTx
	}
	if !perCheckout && !c.held {
		// Handed to a caller that had given up, and returned without a checkout. Another can have
		// claimed the connection since.
		return !c.ph.broken.Load() && c.slot.Current(c.generation)
	}
	if !c.ph.valid() {
		return false
	}
	if perCheckout {
		return c.returnCheckout()
	}
	tooOld := c.ph.moved.Load() && c.cn.tooOld(c.ph)
	if !tooOld && c.slot.Keep() {
		c.held, c.returned = false, true
		return true
	}
	if c.ph.pinned == allotment.Free && c.handOver() {
		c.returned = true
		return true
	}
	c.parking = !tooOld
	return false
}

// Close is called after IsValid said no, after an operation returned ErrBadConn, when the
// connection has been idle or alive for too long, or with the DB. The opener calls it with the lock
// on the whole DB held: but only on a connection that was never used, which is empty.
func (c *conn) Close() error {
	if c.cn.cfg.Scope == PerCheckout {
		return c.closeCheckout()
	}
	if c.clock {
		c.stopClock(c.returned)
	}
	ph := c.ph
	if ph == nil {
		return nil
	}
	slot := c.slot
	c.ph, c.slot = nil, nil
	if c.parking && ph.pinned != allotment.Fixed && ph.valid() {
		// database/sql has closed the statements it kept on it, just now.
		if ph.pinned == allotment.Held {
			ph.setPin(allotment.Free)
		}
		ph.statements = false
		if c.cn.park(slot) {
			return nil
		}
		// The fleet had asked for it back.
	}
	if c.held && ph.taken() {
		return ph.closeByWrapper() // the checkout ends with the socket
	}
	if !slot.LeaveAt(c.generation) {
		return nil // claimed: another wrapper has it
	}
	return ph.closeByWrapper()
}

// Raw implements [RawConn].
func (c *conn) Raw() driver.Conn {
	// sql.Conn.Raw passes no context.
	ctx, cancel := context.WithTimeout(context.Background(), c.cn.cfg.AcquireTimeout)
	defer cancel()
	if c.use(ctx) != nil {
		return nil
	}
	return c.ph.inner
}
