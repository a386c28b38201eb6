package core

import (
	"fmt"
	"time"
)

// The session keeps Config.Max itself, without Redis. A request that would exceed it waits in a
// queue of the session, and Redis does not hear of it.
//
// Invariant, with a Max: permits held + wants <= Max, where wants counts the permits of requests
// that are in the outbox, in flight or in Redis's queue. It changes where a request is admitted and
// settled, and where a permit stops being held.
//
// If one pool of the session holds all that another waits for, no other session ever recalls it. So
// this session does: one permit at a time, by the rule of the fleet.

// turnBelowMax is how long a pool keeps the one permit that another pool of the session waits for.
const turnBelowMax = 500 * time.Millisecond

// roomBelowMax is how many more permits the session may ask for.
func (c *Core) roomBelowMax() int {
	if c.cfg.Max == 0 {
		return maxPoolRequest
	}
	return c.cfg.Max - len(c.permits) - c.wants
}

// admit counts r in, or lets it wait. It refuses a request that does not wait.
func (c *Core) admit(now time.Duration, r *Request) bool {
	if len(c.waiting) == 0 && len(r.ids) <= c.roomBelowMax() {
		c.wants += len(r.ids)
		return true
	}
	r.belowMax = true
	if !r.Kind.Waits() {
		c.settle(now, r, fmt.Errorf("%w: this session holds Config.Max, %d",
			ErrCapacity, c.cfg.Max))
		return false
	}
	c.waiting = append(c.waiting, r)
	c.makeRoom(now)
	return false
}

// settleBelowMax takes r out of the queue, or out of wants, now that it is settled.
func (c *Core) settleBelowMax(now time.Duration, r *Request) {
	switch {
	case c.cfg.Max == 0 || r.Extends:
		return
	case r.belowMax:
		c.waiting = without(c.waiting, r)
	default:
		c.wants -= len(r.ids)
	}
	c.madeRoom(now) // one that waited may have been in the way of smaller ones
}

// nextBelowMax returns the queued request to admit next: of those that wait, the first whose pool
// holds fewest permits. A plain request counts as one of a pool that holds none.
func (c *Core) nextBelowMax() *Request {
	var next *Request
	for _, r := range c.waiting {
		if next == nil || r.poolHolds() < next.poolHolds() {
			next = r
		}
	}
	return next
}

// poolHolds is how many permits the pool holds that r is for.
func (r *Request) poolHolds() int {
	if r.Pool == nil {
		return 0
	}
	return r.Pool.held
}

// madeRoom admits requests for which there is room now.
func (c *Core) madeRoom(now time.Duration) {
	if c.cfg.Max == 0 {
		return
	}
	c.making = false
	for r := c.nextBelowMax(); r != nil; r = c.nextBelowMax() {
		room := c.roomBelowMax()
		if r.Pool != nil && room > 0 {
			c.trim(r, room)
		}
		if len(r.ids) > room {
			break
		}
		c.waiting = without(c.waiting, r)
		r.belowMax = false
		c.wants += len(r.ids)
		c.enqueue(r)
	}
	c.makeRoom(now)
	c.flush(now)
}

// trim cuts a pool's request to n permits at most: the pool takes any number.
func (c *Core) trim(r *Request, n int) {
	if len(r.ids) <= n {
		return
	}
	for _, id := range r.ids[n:] {
		delete(c.asked, id)
	}
	r.ids, r.Permits = r.ids[:n], r.Permits[:n]
}

// makeRoom takes room from a pool of this session that has more than the pool to be admitted next.
// It withdraws what that pool asks for and may never be granted, or else recalls a permit.
func (c *Core) makeRoom(now time.Duration) {
	next := c.nextBelowMax()
	if c.making || next == nil {
		return
	}
	var largest *Pool
	for _, p := range c.pools {
		if p == next.Pool {
			continue
		}
		if p.request != nil && !p.request.belowMax && p.held > next.poolHolds() {
			// By way of settleBelowMax this makes room. p is not told, and wants as much as before:
			// it asks again, and its request now waits here. That one takes room only from a pool
			// that holds more than p, so this ends.
			c.withdraw(now, p.request, ErrCapacity)
			c.Ask(now, p, p.want)
			return
		}
		if largest == nil || p.held > largest.held {
			largest = p
		}
	}
	after := time.Duration(0)
	switch has := next.poolHolds(); {
	case largest == nil || largest.held == 0 || has > 0 && largest.held < has+2:
		return
	case largest.held == 1:
		after = turnBelowMax
	}
	c.making = true
	c.tell(Event{Kind: MakeRoom, Pool: largest, N: 1, After: after})
}
