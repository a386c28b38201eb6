package semaphore

import (
	"fmt"
	"slices"
	"time"
)

// Config.Max is kept here, not in Redis: what would exceed it waits behind, in one FIFO queue, and is not asked for.
//
// Invariant, with a Max: permits held + asked <= Max, where asked counts the permits of requests that are in the outbox, in flight or in Redis's
// queue. It changes where a request is admitted and settled, and where a permit stops being held.
//
// Should one pool of the session hold all that another waits for, no other session would ever ask for it back. So the session
// does: one permit at a time, by the rule of the fleet.

// turnBelowMax is how long a pool keeps the one permit that another pool of the session waits for.
const turnBelowMax = 500 * time.Millisecond

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

// poorest is who is served next below Max: of those behind, the first whose pool holds least. A plain request counts as one of a pool that holds
// none. s.mu is held.
func (s *Semaphore) poorest() *ask {
	var next *ask
	for _, a := range s.behind {
		if next == nil || a.holds() < next.holds() {
			next = a
		}
	}
	return next
}

// holds is how many permits the pool holds that a is for. Semaphore.mu is held.
func (a *ask) holds() int {
	if a.share == nil {
		return 0
	}
	return a.share.held
}

// madeRoom lets in those behind for whom there is room now. s.mu is held.
func (s *Semaphore) madeRoom() {
	if s.cfg.Max == 0 {
		return
	}
	s.making = false
	for a := s.poorest(); a != nil; a = s.poorest() {
		room := s.roomBelowMax()
		if a.share != nil && room > 0 {
			s.trim(a, room)
		}
		if len(a.ids) > room {
			break
		}
		s.behind = slices.DeleteFunc(s.behind, func(other *ask) bool { return other == a })
		a.behind = false
		s.asked += len(a.ids)
		s.putOut(a)
	}
	s.makeRoom()
	s.fly()
}

// trim makes a pool's request one for n permits at the most: any number is welcome to it. s.mu is held.
func (s *Semaphore) trim(a *ask, n int) {
	if len(a.ids) <= n {
		return
	}
	for _, id := range a.ids[n:] {
		delete(s.asks, id)
	}
	a.ids, a.permits = a.ids[:n], a.permits[:n]
}

// makeRoom takes room from a pool of this session that has more than who is next behind: what it asks for and may never be granted, or else a
// permit. s.mu is held.
func (s *Semaphore) makeRoom() {
	next := s.poorest()
	if s.making || next == nil {
		return
	}
	var most *Share
	for _, sh := range s.shares {
		if sh == next.share {
			continue
		}
		if sh.ask != nil && !sh.ask.behind && sh.held > next.holds() {
			// Its callers will ask again, and then it is behind.
			s.withdraw(sh.ask, ErrCapacity)
			return // by way of settleBelowMax this made room
		}
		if most == nil || sh.held > most.held {
			most = sh
		}
	}
	after := time.Duration(0)
	switch has := next.holds(); {
	case most == nil || most.held == 0 || has > 0 && most.held < has+2:
		return
	case most.held == 1:
		after = turnBelowMax
	}
	s.making = true
	go most.sharer.Recall(1, after)
}
