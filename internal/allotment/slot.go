package allotment

import (
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"
)

// Slot is the place of one connection of the pool, from before its dial until its backend has
// ended.
type Slot struct {
	a *Allotment

	// Guarded by the allotment's lock.
	permit   *engine.Permit // nil: uncounted, or its lease was lost
	state    state
	lost     bool           // its lease is lost; it ends at the next occasion
	since    time.Time      // when it began to be opened, or to leave
	lapsed   *engine.Permit // with Options.Fence, if lost: the permit, to be given when s is gone
	recorded *Backend       // with Options.Fence: its backend, as Redis knows it
	doubted  bool           // see Doubt
	byHand   bool           // see OpenedByHand
	swept    bool           // a sweep has seen it idle, at idleSeen
	idleSeen time.Time
	uses     uint64    // its checkouts
	seen     uint64    // uses, when a Report last saw it out: see inUse
	seenAt   time.Time // when a Report first saw it out in that use
	handover
	ring[Slot]     // Allotment.idle's: always when idle, maybe when out
	attached   any // the integration's own
}

// become moves s to another state, and updates the counts and the idle ring.
func (s *Slot) become(to state) {
	a := s.a
	switch {
	case to == s.state:
		return
	case s.state == idle:
		s.endIdle(to)
		if s.pin == Fixed {
			a.slots.fixed--
		}
	case to == idle:
		s.makeIdle()
		if s.pin == Fixed {
			a.slots.fixed++
		}
	default:
		a.slots.move(s.state, to)
		s.state = to
	}
	if to >= leaving {
		s.unlink()
	}
}

// endIdle takes s out of the state idle, and makeIdle makes it idle, the first of the ring. Every
// warm checkout does both. They are short, and leave the count of Fixed ones to become. A slot that
// endIdle has moved stays linked in the ring. It is mostly the first to come back too, and then no
// pointer is written. So the ring can hold some that are out.
func (s *Slot) endIdle(to state) {
	s.parked, s.swept = false, false
	s.a.slots.move(idle, to)
	s.state = to
}

func (s *Slot) makeIdle() {
	a := s.a
	if a.idle.next != &s.ring {
		s.unlink()
		s.follow(&a.idle)
	}
	a.slots.move(s.state, idle)
	s.state = idle
}

// Attach keeps a value of the integration with s, which may be shared already. It reports false if
// s is to be ended at once, because its lease was lost before there was anything for Pool.Abort to
// end.
func (s *Slot) Attach(value any) bool {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	s.attached = value
	return !s.lost && !s.a.closed
}

// Attached returns what Attach set, or nil.
func (s *Slot) Attached() any {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	return s.attached
}
