package semaphore

import (
	"fmt"
	"slices"
)

// Config.Max is kept here, not in Redis: what would exceed it waits behind, in one FIFO queue, and is not asked for.
//
// Invariant, with a Max: permits held + asked <= Max, where asked counts the permits of requests that are in the outbox, in flight or in Redis's
// queue. It changes where a request is admitted and settled, and where a permit stops being held.
//
// Should one pool of the session hold all that another waits for, no other session would ever ask for it back. So the session
// does: one permit at a time, by the rule of the fleet.

// roomBelowMax is how many permits more may be asked for. s.mu is held.
func (s *Semaphore) roomBelowMax() int {
	if s.cfg.Max == 0 {
		return shareMost
	}
	return s.cfg.Max - len(s.permits) - s.asked
}

// admit counts a in, or puts it behind; a request that would not wait is refused. s.mu is held.
func (s *Semaphore) admit(a *ask) bool {
	if len(s.behind) == 0 && len(a.ids) <= s.roomBelowMax() {
		s.asked += len(a.ids)
		return true
	}
	a.behind = true
	if !waits(a.kind) {
		s.settle(a, fmt.Errorf("%w: this session holds Config.Max, %d", ErrCapacity, s.cfg.Max))
		return false
	}
	s.behind = append(s.behind, a)
	s.makeRoom()
	return false
}

// settleBelowMax is the end of a request. s.mu is held.
func (s *Semaphore) settleBelowMax(a *ask) {
	switch {
	case s.cfg.Max == 0 || a.extends:
	case a.behind:
		s.behind = slices.DeleteFunc(s.behind, func(other *ask) bool { return other == a })
		s.madeRoom() // it may have been in the way of smaller ones
	default:
		s.asked -= len(a.ids)
		s.madeRoom()
	}
}

// madeRoom lets in those behind for whom there is room now. s.mu is held.
func (s *Semaphore) madeRoom() {
	if s.cfg.Max == 0 {
		return
	}
	s.making = false
	if len(s.behind) == 0 {
		return
	}
	for len(s.behind) > 0 && len(s.behind[0].ids) <= s.roomBelowMax() {
		a := s.behind[0]
		s.behind = remove(s.behind, 1)
		a.behind = false
		s.asked += len(a.ids)
		s.putOut(a)
	}
	s.makeRoom()
	s.fly()
}

// makeRoom recalls a permit from the pool of this session that holds most, if who is first behind has a claim to it. s.mu is held.
func (s *Semaphore) makeRoom() {
	if s.making || len(s.behind) == 0 || s.asked > 0 {
		return // what is asked for will be granted, and returned
	}
	has := 0
	if sh := s.behind[0].share; sh != nil {
		has = sh.held
	}
	var most *Share
	for _, sh := range s.shares {
		if sh != s.behind[0].share && (most == nil || sh.held > most.held) {
			most = sh
		}
	}
	switch {
	case most == nil || most.held == 0 || has > 0 && most.held < has+2:
	case most.held == 1:
		s.making = true
		go func() { most.sharer.Recall(1, s.tenure()) }()
	default:
		s.making = true
		go most.sharer.Recall(1, 0)
	}
}
