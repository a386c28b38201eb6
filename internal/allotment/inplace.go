package allotment

import (
	"github.com/passbuddy/passbuddy/internal/core"
	"time"
)

// This file is for a pool that hands out and takes back its idle connections by itself (pgxpool), while the allotment may have to close one
// of them from outside: in place, without the pool's knowing.

// Attach sets Value on a Conn that is already shared. It reports false if c is to be ended at once, because its lease was
// lost before there was anything for Pool.Fence to end.
func (c *Conn) Attach(value any) bool {
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	c.Value = value
	return !c.lost && !c.a.closed
}

// Ended is why c must end although its user has not closed it: ErrLost, ErrClosed of the semaphore,
// or nil if there is no such reason.
func (c *Conn) Ended() error {
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	switch {
	case c.lost:
		return core.ErrLost
	case c.a.closed:
		return core.ErrClosed
	}
	return nil
}

// AllAttached is what was attached to the connections of the pool.
func (a *Allotment) AllAttached() []any {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]any, 0, len(a.all))
	for c := range a.all {
		if c.Value != nil {
			all = append(all, c.Value)
		}
	}
	return all
}

// Attached is what Attach set, or nil.
func (c *Conn) Attached() any {
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	return c.Value
}

// SweepIdle makes connections leave that have lain idle, untouched, since a sweep at least maxIdle ago, the
// oldest first and only while more than keep are open, and returns them for closing.
func (a *Allotment) SweepIdle(maxIdle time.Duration, keep int) []*Conn {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	var old []*Conn
	for c := a.idle.prev; c != &a.idle; {
		prev := c.prev
		switch {
		case c.state != idle:
		case !c.swept:
			c.swept, c.idleSeen = true, now
		case now.Sub(c.idleSeen) < maxIdle:
		case a.conns[opening]+a.conns[idle]+a.conns[out] <= keep:
		default:
			c.leave()
			old = append(old, c)
		}
		c = prev
	}
	if old != nil {
		a.settle()
	}
	return old
}

// TryEnter is Enter without a claim where no wait is needed, and false otherwise.
func (a *Allotment) TryEnter() bool {
	a.mu.Lock()
	ok := !a.closed && a.waiters.n == 0 && a.debt == 0 && a.mayTake()
	if ok {
		a.take(false)
	}
	a.mu.Unlock()
	return ok
}
