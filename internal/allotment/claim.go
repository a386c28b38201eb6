package allotment

import "time"

// This file is for a pool whose idle connections can change hands: a caller with a turn takes one over
// from whichever object of the pool lies idle with it (see Enter's claim). That object is not told; it finds out by its
// epoch, under the lock, before it touches the connection again. So of a claim and a checkout, a
// close or an eviction of the same idle connection exactly one wins, and no other order needs thought.

// A Pin restricts what may happen to an idle connection without its pool's consent.
type Pin uint8

const (
	// Free: it can be claimed and evicted.
	Free Pin = iota
	// Held: the pool's own objects (prepared statements) still refer to it, so it cannot change hands. It can be
	// evicted: the pool can end it from outside.
	Held
	// Fixed: it can be neither claimed nor evicted; only its pool can use it again, or end it. It is no unit that a
	// waiting caller could be given.
	Fixed
)

// Pin sets what may happen to c while it is idle. c is not idle now.
func (c *Conn) Pin(p Pin) {
	c.a.mu.Lock()
	c.pin = p
	c.a.mu.Unlock()
}

// claim takes the most recently returned idle connection that may be claimed, or nil. The lock is held.
func (a *Allotment) claim() *Conn {
	for c := a.idle.next; c != &a.idle; c = c.next {
		if c.state == idle && c.pin == Free && !c.lost {
			c.become(out)
			c.epoch++
			return c
		}
	}
	return nil
}

// Epoch tells one holder of c from the next: it counts claims. It is read by who has just opened c or claimed it.
func (c *Conn) Epoch() uint32 {
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	return c.epoch
}

// Retake is CheckOut for the holder of that epoch, who has no turn: it takes the one that c, being idle, stands for.
func (c *Conn) Retake(epoch uint32) bool {
	a := c.a
	a.mu.Lock()
	ok := c.epoch == epoch && c.state == idle && !c.lost && a.available() > 0
	if ok {
		a.turns++
		if c.pin == Free {
			c.lift(out) // the warm path
		} else {
			c.become(out)
		}
		if a.offering {
			a.low = min(a.low, a.available())
		}
	}
	a.mu.Unlock()
	return ok
}

// Keep is Return for the common case: nobody here waits, the fleet asked for nothing back, and c can lie idle in its pool. Otherwise
// it changes nothing and reports false, and Park or LeaveAt must follow.
func (c *Conn) Keep() bool {
	a := c.a
	a.mu.Lock()
	ok := c.state == out && !c.lost && !a.closed &&
		a.debt == 0 && a.evicting == 0 && a.waiters.n == 0 && a.openers.n == 0
	if ok {
		a.turns--
		if c.pin == Free {
			c.lay()
		} else {
			c.become(idle)
		}
		if a.wanted && !a.offering {
			a.settle()
		}
	}
	a.mu.Unlock()
	return ok
}

// Park ends the checkout of c, whose object in the pool is going. A waiting caller takes c over; if there is none any more, c lies parked:
// idle, in no pool, until a claim, an eviction or a Sweep. It reports false if c is leaving; its owner must then close it.
func (c *Conn) Park() bool {
	a := c.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.state == out {
		a.turns--
		a.returns++
	}
	parked := c.returnSlow(true)
	c.parked = parked && c.state == idle
	a.settle()
	return parked
}

// LeaveAt makes c leave, if it has not left yet, for the holder of that epoch. It reports whether c is still the
// caller's, who must then see to its closing: false means that it was claimed, and is another's.
func (c *Conn) LeaveAt(epoch uint32) bool {
	a := c.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.epoch != epoch {
		return false
	}
	if c.state == out {
		a.turns--
		a.returns++
	}
	if c.state < leaving {
		c.leave()
		a.settle()
	}
	return true
}

// LeaveIdle makes c leave if it is idle and Free. It reports whether c leaves by this call: the caller is then who closes it.
func (c *Conn) LeaveIdle() bool {
	a := c.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.state != idle || c.pin != Free {
		return false
	}
	c.leave()
	a.settle()
	return true
}

// LeaveUncounted makes c leave if it is idle, and lives without a permit for longer than it may. It
// reports whether c leaves by this call: the caller then ends it.
func (c *Conn) LeaveUncounted() bool {
	a := c.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.state != idle || !a.mustCountIn(c) {
		return false
	}
	c.leave()
	a.settle()
	return true
}

// Current reports whether c is open, its lease not lost, and it was not claimed since that epoch.
func (c *Conn) Current(epoch uint32) bool {
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	return c.epoch == epoch && c.state < leaving && !c.lost
}

// Discard makes c leave, which its caller has claimed and found unusable. The turn stays with the caller, who opens another in its
// place. Until c is gone the unit is counted twice, as a turn and as leaving: that errs on the safe side.
func (c *Conn) Discard() bool {
	a := c.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.state != out {
		return false
	}
	c.since = time.Now()
	c.become(leaving)
	a.settle()
	return true
}
