package allotment

import "time"

// Leave tells that the connection of s is being closed, by whoever decided it. Its permit comes
// back with Gone.
func (s *Slot) Leave() {
	s.a.mu.Lock()
	if s.quit() {
		s.a.settle()
	}
	s.a.mu.Unlock()
}

// quit ends the checkout of s, if it is out, and makes s leave. It reports false if s has left
// already.
func (s *Slot) quit() bool {
	if s.state == out {
		s.a.slots.endCheckout()
	}
	if s.state >= leaving {
		return false
	}
	s.leave()
	return true
}

// leave moves s to leaving. Where a slot is to be evicted for the engine, and is still being looked
// for, s is it. Its turn, if any, has ended.
func (s *Slot) leave() {
	s.failed()
	s.a.debts.leave()
	s.since = time.Now()
	s.become(leaving)
}

// failed notes that s ends before it was ever connected: its dial failed, or what followed it. The
// move of its permit has ended with that.
func (s *Slot) failed() {
	a := s.a
	if s.state == opening && !a.opts.PerCheckout {
		a.costs.failing = true
		a.reportMove()
	}
}

// endUse decides about a slot that has no turn any more, and reports whether it stays in its pool.
func (s *Slot) endUse(healthy bool) bool {
	a := s.a
	switch {
	case s.state >= leaving:
		return false
	case !healthy || s.lost || a.closed || a.mustCountIn(s) || a.debts.evicting > 0:
		s.leave()
		return false
	case a.debts.owed > 0:
		a.debts.payByReturn()
		s.leave()
		return false
	case s.state == out:
		s.become(idle)
	}
	return true
}

// Gone tells that the backend of s has ended, or was never started: its permit is free for another
// connection, here or elsewhere. It may be called more than once.
func (s *Slot) Gone() {
	a := s.a
	a.mu.Lock()
	if s.state != gone {
		s.end()
		a.settle()
	}
	a.mu.Unlock()
}

// end takes s out of the allotment.
func (s *Slot) end() {
	a := s.a
	// A connection that the network has lost says nothing about how long a close takes.
	if s.state == leaving && !s.doubted && !a.opts.PerCheckout {
		smooth(&a.costs.end, time.Since(s.since))
	}
	s.failed()
	if s.state == out { // closed while checked out, or hijacked: a return, if it comes, finds s gone
		a.slots.endCheckout()
	}
	s.become(gone)
	a.remove(s)
	a.doubts.remove(s)
	p := s.permit
	s.permit = nil
	switch {
	case p == nil && s.lost: // the engine knows, unless it has to hear that the backend is gone
		if s.lapsed != nil {
			a.engine.Give(s.lapsed)
			s.lapsed = nil
		}
	case p == nil && !a.closed && !a.mustCountIn(s): // uncounted, and its place can be used again
		a.permits.add(nil)
	case p == nil:
		a.give(nil)
	case a.debts.leaving > 0 || a.closed:
		a.debts.payByEnd()
		a.give(p)
	default:
		a.permits.add(p)
		if a.opts.PerCheckout {
			a.usedAt = time.Now()
		}
	}
	a.debts.bound(a.slots.n[leaving])
}

// The pause between two searches for an idle slot, which is about to be put into its pool. It
// doubles.
const (
	minEvictPause = time.Millisecond
	maxEvictPause = 64 * time.Millisecond
)

// mustEvict reports whether an idle slot has to end:
//
//   - because one was set aside to pay a debt;
//   - because an opener waits for its permit: it found nothing idle in its pool although, by our
//     count, a connection was just being returned;
//   - because a caller waits that can have no idle one, as only their pool can end those (Pin).
func (a *Allotment) mustEvict() bool {
	return a.debts.evicting > 0 ||
		(a.slots.n[idle] > 0 && a.openers.n > a.slots.n[leaving]-a.debts.leaving) ||
		(a.slots.fixed > 0 && a.waiters.n > 0)
}

// search evicts idle slots while any has to end. It can come too early: a pool's return hook runs
// just before the connection is idle in it. It then tries again, unless a return has paid
// meanwhile. It takes the lock.
func (a *Allotment) search() {
	pause := minEvictPause
	for {
		a.mu.Lock()
		if a.closed || !a.mustEvict() {
			a.searching = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		if a.pool.Evict() {
			pause = minEvictPause
			continue
		}
		time.Sleep(pause)
		pause = min(2*pause, maxEvictPause)
	}
}

// EvictIdle makes the slot leave that has been idle longest and may be closed from outside, if an
// idle slot has to end at all. It returns nil if none leaves. The caller must close its connection.
func (a *Allotment) EvictIdle() *Slot {
	a.mu.Lock()
	defer a.mu.Unlock()
	for r := a.idle.prev; r != &a.idle && a.mustEvict(); r = r.prev {
		if s := r.v; s.state == idle && s.pin != Fixed {
			s.leave()
			a.settle()
			return s
		}
	}
	return nil
}

// leaveIdleIf makes s leave if it is idle and may end, and reports whether it did. It takes the
// lock.
func (s *Slot) leaveIdleIf(may func() bool) bool {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.state != idle || !may() {
		return false
	}
	s.leave()
	s.a.settle()
	return true
}

// sweep makes idle slots leave that have lain untouched since a sweep at least maxIdle ago, the
// oldest first and only while more than keep are open, and returns them. It also reports whether
// others are left. It takes the lock.
func (a *Allotment) sweep(maxIdle time.Duration, parked bool, keep int) (old []*Slot, more bool) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for r := a.idle.prev; r != &a.idle; {
		s := r.v
		r = r.prev // s may leave the ring
		switch {
		case s.state != idle || parked && !s.parked:
		case maxIdle > 0 && !s.swept:
			s.swept, s.idleSeen, more = true, now, true
		case maxIdle > 0 && now.Sub(s.idleSeen) < maxIdle:
			more = true
		case a.slots.all()-a.slots.n[leaving] > keep:
			s.leave()
			old = append(old, s)
		}
	}
	if old != nil {
		a.settle()
	}
	return old, more
}

// remove forgets a slot that is gone.
func (a *Allotment) remove(s *Slot) {
	delete(a.all, s)
	if a.emptied != nil && len(a.all) == 0 {
		close(a.emptied)
		a.emptied = nil
	}
}

// Emptied returns a channel that is closed at the next instant at which the pool has no slot: at
// once, if it has none now.
func (a *Allotment) Emptied() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	emptied := a.emptied
	if emptied == nil {
		emptied = make(chan struct{})
		a.emptied = emptied
	}
	if len(a.all) == 0 {
		close(emptied)
		a.emptied = nil
	}
	return emptied
}
