package allotment

import "time"

// Only the database/sql integration calls the methods of this file. Idle connections of its pool
// can change hands: a caller with a turn takes one over from the wrapper that lies idle with it in
// the pool (see Enter's claim). That wrapper is not told. It finds out by its generation, under the
// lock, before it touches the connection again. So of a claim and a checkout, a close or an
// eviction of the same idle slot exactly one wins, and no other order needs thought.

// handover is the part of a slot that is for this.
type handover struct {
	generation uint32 // see Generation
	pin        Pin
	parked     bool // idle, and in no wrapper; see Park
	unmissed   bool // claimed, and the wrapper has not found out; see Unclaim
}

// A Pin restricts what may happen to an idle slot without its pool's consent.
type Pin uint8

const (
	// Free: it can be claimed and evicted.
	Free Pin = iota
	// Held: the pool's own objects (prepared statements) still refer to it, so it cannot change
	// hands. It can be evicted: the pool can end it from outside.
	Held
	// Fixed: it can be neither claimed nor evicted; only its pool can use it again, or end it. It
	// is nothing that a waiting caller could be given.
	Fixed
)

// Pin sets what may happen to s while it is idle. s is not idle now.
func (s *Slot) Pin(p Pin) {
	s.a.mu.Lock()
	s.pin = p
	s.a.mu.Unlock()
}

// claim takes the most recently returned idle slot that may be claimed, or nil.
func (a *Allotment) claim() *Slot {
	for r := a.idle.next; r != &a.idle; r = r.next {
		if s := r.v; s.state == idle && s.pin == Free && !s.lost {
			s.unmissed = !s.parked
			s.become(out)
			s.uses++
			s.generation++
			return s
		}
	}
	return nil
}

// Unclaim ends a checkout that began with a claim, and leaves s idle with the wrapper that it was
// claimed from. It is for a use that leaves no wrapper of its own behind. Where s has to go to a
// waiting caller or to the fleet, or that wrapper has found out, Unclaim changes nothing and
// reports false, and Park or Leave must follow.
//
//	wrapper of generation g, idle -- claim --> out, g+1 -- Unclaim --> idle, g
//	                                              |
//	                                              | Retake or LeaveAt by the wrapper
//	                                              v
//	                                           out, g+1, in no wrapper -- Park --> parked
//
// A wrapper that has found out reports a bad connection, and is closed. It may do so before or
// after its LeaveAt, so either counts: s must not be idle in g then, or it would lie in no wrapper
// for ever, or end with the wrapper. No other wrapper is of generation g+1: its only holder is the
// caller of Unclaim.
func (s *Slot) Unclaim() bool {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if !s.unmissed || !s.keep() {
		return false
	}
	s.unclaim()
	return true
}

func (s *Slot) unclaim() {
	if s.unmissed {
		s.generation--
	}
	s.parked, s.unmissed = !s.unmissed, false
}

// missed takes note that the wrapper of that generation has found out.
func (s *Slot) missed(generation uint32) {
	if s.generation == generation+1 {
		s.unmissed = false
	}
}

// Generation tells one holder of s from the next: it counts claims. The caller that has just opened
// s, or claimed it, reads it.
func (s *Slot) Generation() uint32 {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	return s.generation
}

// Retake is CheckOut for the holder of that generation, which has no turn: it takes the one that s,
// being idle, stands for.
func (s *Slot) Retake(generation uint32) bool {
	a := s.a
	a.mu.Lock()
	ok := s.generation == generation && s.state == idle && !s.lost && a.available() > 0
	if ok {
		a.slots.turns++
		s.uses++
		if s.pin == Free {
			s.endIdle(out) // the warm path
		} else {
			s.become(out)
		}
		if a.offers.timed {
			a.offers.low = min(a.offers.low, a.available())
		}
	} else {
		s.missed(generation)
	}
	a.mu.Unlock()
	return ok
}

// Keep is Return for the common case: no caller waits here, the engine asked for nothing back, and
// s can lie idle in its pool. Otherwise it changes nothing and reports false, and Park or LeaveAt
// must follow.
func (s *Slot) Keep() bool {
	a := s.a
	a.mu.Lock()
	ok := s.keep()
	a.mu.Unlock()
	return ok
}

func (s *Slot) keep() bool {
	a := s.a
	ok := s.staysOpen() &&
		a.debts.owed == 0 && a.debts.evicting == 0 && a.waiters.n == 0 && a.openers.n == 0
	if ok {
		a.slots.turns-- // returns need not count it: see explain
		if s.pin == Free {
			s.makeIdle()
		} else {
			s.become(idle)
		}
		if a.offers.wanted && !a.offers.timed {
			a.settle()
		}
	}
	return ok
}

// staysOpen reports whether s, which is out, may lie idle after that: see also endUse.
func (s *Slot) staysOpen() bool {
	return s.state == out && !s.lost && !s.a.closed && (s.permit != nil || !s.a.mustCountIn(s))
}

// Park ends the checkout of s, whose wrapper is being closed. A waiting caller takes s over. If
// none waits any more, s lies parked: idle, in no wrapper, until a claim, an eviction or
// SweepParked. Park reports false if s is leaving; its owner must then close it.
func (s *Slot) Park() bool {
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.state == out {
		a.slots.endCheckout()
	}
	stays := s.endUse(true)
	s.parked = stays && s.state == idle
	a.settle()
	return stays
}

// LeaveAt makes s leave, if it has not left yet, for the holder of that generation. It reports
// whether s is still the caller's, which must then see to its closing: false means that another
// caller has claimed s.
func (s *Slot) LeaveAt(generation uint32) bool {
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.generation != generation {
		s.missed(generation)
		return false
	}
	if s.quit() {
		a.settle()
	}
	return true
}

// LeaveIdle makes s leave if it is idle and Free. It reports whether s leaves by this call: the
// caller is then the one that closes it.
func (s *Slot) LeaveIdle() bool { return s.leaveIdleIf(func() bool { return s.pin == Free }) }

// Current reports whether s is open, its lease not lost, and it was not claimed since that
// generation.
func (s *Slot) Current(generation uint32) bool {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	return s.generation == generation && s.state < leaving && !s.lost
}

// Discard makes s leave, which its caller has claimed and found unusable. The turn stays with the
// caller, which opens another slot in its place. Until s is gone it is counted twice, as a turn and
// as leaving: that errs on the safe side.
func (s *Slot) Discard() bool {
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.state != out {
		return false
	}
	s.since = time.Now()
	s.become(leaving)
	a.settle()
	return true
}

// SweepParked makes parked slots leave that have lain untouched, since a sweep at least maxIdle
// ago, and returns them for closing. It also reports whether others stay parked.
func (a *Allotment) SweepParked(maxIdle time.Duration) (old []*Slot, more bool) {
	return a.sweep(maxIdle, true, 0)
}

// AllAttached returns what was attached to the slots of the pool.
func (a *Allotment) AllAttached() []any {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]any, 0, len(a.all))
	for s := range a.all {
		if s.attached != nil {
			all = append(all, s.attached)
		}
	}
	return all
}
