package passbuddy

import (
	"sync/atomic"
	"time"
)

// This file keeps SetConnMaxLifetime in PerConnection; idleList does it in PerCheckout.
//
// database/sql counts the age of wrappers and tells nobody its limit. A connection that changes
// hands inside PassBuddy has a new wrapper, which is young. While callers wait, connections change
// hands at each return, no wrapper reaches the limit, and a connection would live for ever.
//
// So one wrapper of the DB is the clock. The first that is returned while callers wait becomes it.
// It gives its connection to the next caller as the others do, but is not closed for that: it stays
// with database/sql, empty. The caller that checks it out next waits in the queue as if Connect
// served it. So the clock grows old, and database/sql closes it at its limit. That shows what the
// limit is, at most: see closedForAge.
//
// Invariants:
//
//   - At most one wrapper is the clock, and it is the clock until it is closed.
//   - maxAge is 0, or at least the limit that was in force when the last clock was closed for its
//     age.
//   - A connection that was never handed over (moved) is as old as its wrapper, and left to
//     database/sql. One that was handed over is closed at its next claim, checkout or return once
//     it is older than maxAge; or, if it lies idle, by its timer.
//
// If the limit is raised, a clock gets older than maxAge. That shows at its next checkout, and
// maxAge is forgotten.
//
// Two limits remain. Until the first clock is closed, that is, one lifetime after callers first had
// to wait, a connection can be as old as two lifetimes. And with SetMaxIdleConns(0) no clock lives
// beyond its first return.
type ages struct {
	maxAge atomic.Int64 // in nanoseconds; 0: nothing is known
	clock  atomic.Pointer[conn]
}

// tooOld reports whether ph has reached what is known of SetConnMaxLifetime.
func (a *ages) tooOld(ph *physical) bool {
	limit := time.Duration(a.maxAge.Load())
	return limit > 0 && time.Since(ph.opened) >= limit
}

// handOver gives the connection of the clock to the next caller, and reports whether c is the
// clock. Statements that database/sql keeps bind the connection to its wrapper: then c is not.
func (c *conn) handOver() bool {
	if !c.clock {
		if !c.cn.clock.CompareAndSwap(nil, c) {
			return false
		}
		c.clock = true
	}
	ph, slot := c.ph, c.slot
	c.ph, c.slot, c.held = nil, nil, false
	ph.statements = false // those of a transaction, which were closed with it
	if c.cn.tooOld(ph) {
		slot.LeaveAt(c.generation)
		ph.close()
	} else if !c.cn.park(slot) {
		ph.close()
	}
	return true
}

// clockSlack is by how much the clock may be older than maxAge when it is checked out. database/sql
// looks at its age some time before we do.
const clockSlack = time.Second

// readClock is called when the clock is checked out.
func (c *conn) readClock() {
	limit := c.cn.maxAge.Load()
	if limit > 0 && time.Since(c.born) > time.Duration(limit)+clockSlack {
		c.cn.maxAge.CompareAndSwap(limit, 0)
	}
}

// stopClock is called when the clock is closed. returned tells that it was at rest, or on its way
// to it.
func (c *conn) stopClock(returned bool) {
	if returned && closedForAge() {
		c.cn.learn(time.Since(c.born))
	}
	c.cn.clock.CompareAndSwap(c, nil)
}

// learn notes that database/sql closes wrappers of that age.
func (cn *connector) learn(age time.Duration) {
	for {
		known := cn.maxAge.Load()
		if known > 0 && known <= int64(age) {
			return
		}
		if cn.maxAge.CompareAndSwap(known, int64(age)) {
			break
		}
	}
	for _, v := range cn.a.AllAttached() {
		if ph, ok := v.(*physical); ok && ph.moved.Load() {
			cn.setExpiry(ph)
		}
	}
}

// moves notes that ph changes hands.
func (cn *connector) moves(ph *physical) {
	ph.moved.Store(true)
	if cn.maxAge.Load() > 0 && ph.expiry.Load() == nil {
		cn.setExpiry(ph)
	}
}

// setExpiry sets the timer that closes ph if it lies idle when it is too old. A later learn
// replaces it.
func (cn *connector) setExpiry(ph *physical) {
	if limit := time.Duration(cn.maxAge.Load()); limit > 0 {
		cn.expireIn(ph, time.Until(ph.opened.Add(limit)))
	}
}

func (cn *connector) expireIn(ph *physical, wait time.Duration) {
	timer := time.AfterFunc(wait, func() { cn.expire(ph) })
	if old := ph.expiry.Swap(timer); old != nil {
		old.Stop()
	}
	if ph.closeBegun.Load() {
		timer.Stop() // close may have looked before
	}
}

// expire closes ph if it is idle, as an eviction would. If it is in use its return finds out, if
// there is one: a connection that was lent, or that came to a caller who had given up, goes back
// where it was. So expire looks again.
func (cn *connector) expire(ph *physical) {
	ph.expiry.Store(nil)
	switch {
	case !cn.tooOld(ph):
		cn.setExpiry(ph)
	case ph.slot.LeaveIdle():
		ph.close()
	default:
		cn.expireIn(ph, parkTimeout)
	}
}
