package allotment

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/message"
)

// This file is for leases that are lost, and for connections that live without a permit, uncounted,
// while Redis cannot be asked (KeepOnLoss, FallbackConns). A new grant counts them in.

// countInGrace is how long an uncounted connection may wait for a permit once Redis is back.
const countInGrace = time.Second

// Lost tells that the lease of p can no longer be proven. Its connection is aborted. With
// KeepOnLoss, or within FallbackConns, it lives on uncounted until a new grant counts it in.
func (a *Allotment) Lost(p *engine.Permit) {
	defer a.tell(message.Observation{Kind: message.ObservedLoss}) // without the lock
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counted.Lost++
	if a.permits.remove(p) {
		a.give(p) // and say so: with Options.Fence, what it covered before may be recorded
		a.settle()
		return
	}
	for s := range a.all {
		if s.permit != p {
			continue
		}
		s.permit = nil
		if s.state != leaving && (a.opts.KeepOnLoss || a.permits.uncounted < a.opts.FallbackConns) {
			a.permits.uncounted++
			a.countInSoon()
			break
		}
		s.lost = true
		if a.opts.Fence {
			s.lapsed = p
		}
		go a.pool.Abort(s)
		break
	}
	a.settle()
}

// Closed tells that the semaphore is being closed: no caller is served any more, idle connections
// are ended, and those that are out are aborted.
func (a *Allotment) Closed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, q := range []*queue{&a.waiters, &a.openers} {
		for q.n > 0 {
			w := q.pop()
			w.err = fmt.Errorf("passbuddy: %w", core.ErrClosed)
			close(w.ready)
		}
	}
	for len(a.permits.spare) > 0 {
		a.giveSpare()
	}
	for s := range a.all {
		if s.state != leaving {
			go a.pool.Abort(s)
		}
	}
	a.engine.Ask(0)
}

// AbortCause is why s must end although its user has not closed it: ErrLost, ErrClosed of the
// semaphore, or nil if there is no such reason.
func (s *Slot) AbortCause() error {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	switch {
	case s.lost:
		return core.ErrLost
	case s.a.closed:
		return core.ErrClosed
	}
	return nil
}

// addUncounted adds one uncounted permit, where FallbackConns allows it and Redis cannot be asked.
func (a *Allotment) addUncounted() bool {
	if a.owned() >= a.opts.FallbackConns || a.engine.Err() == nil {
		return false
	}
	a.permits.uncounted++
	a.permits.add(nil)
	return true
}

// Changed tells that Redis went away or came back: see Engine.Err. Once it is back, uncounted
// connections are counted in as grants come. Those that are not counted in soon end: when they are
// returned, or now if they are idle.
func (a *Allotment) Changed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.permits.uncounted > 0 && a.engine.Err() == nil {
		a.countInSoon()
	}
	a.settle()
}

// countIn puts p where a spare permit, or a slot, has none.
func (a *Allotment) countIn(p *engine.Permit) bool {
	if a.permits.countIn(p) {
		return true
	}
	for s := range a.all {
		if s.permit == nil && !s.lost {
			s.permit = p
			a.permits.uncounted--
			return true
		}
	}
	return false
}

// countInSoon sets the time until which connections may live without a permit.
func (a *Allotment) countInSoon() {
	a.redisBackAt = time.Now()
	time.AfterFunc(countInGrace, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for r := a.idle.next; r != &a.idle; r = r.next {
			if s := r.v; s.state == idle && a.mustCountIn(s) {
				go a.pool.Abort(s)
			}
		}
	})
}

// mustCountIn reports whether s lives without a permit although Redis has been back for long enough
// to grant it one.
func (a *Allotment) mustCountIn(s *Slot) bool {
	return s.permit == nil && !s.lost && a.engine.Err() == nil && time.Since(a.redisBackAt) >= countInGrace
}

// LeaveUncounted makes s leave if it is idle, and lives without a permit for longer than it may. It
// reports whether s leaves by this call: the caller then ends it.
func (s *Slot) LeaveUncounted() bool {
	return s.leaveIdleIf(func() bool { return s.a.mustCountIn(s) })
}
