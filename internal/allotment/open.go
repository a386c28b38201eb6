package allotment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// newSlot opens a slot under a spare permit. There is one.
func (a *Allotment) newSlot() *Slot {
	s := &Slot{a: a, permit: a.permits.take(), state: opening}
	s.v = s
	if !a.opts.PerCheckout {
		s.since = time.Now()
	}
	a.slots.n[opening]++
	a.all[s] = struct{}{}
	return s
}

// Open opens a slot under a permit, for a connection that is dialled then. Its caller holds a turn.
// So a spare permit is there, or will be as soon as a slot that is leaving is gone, or an idle one
// is evicted for it. This is the last word on the invariant: it never opens one too many.
//
// The slot must be ended with [Slot.Gone], also when the dial fails.
//
// With Options.Fence, Open asks Redis before a permit that has covered a backend covers the next
// one. A permit that turns out to be lost is then replaced by another: nothing was dialled under
// it, and the caller keeps its turn.
func (a *Allotment) Open(ctx context.Context) (*Slot, error) {
	for {
		s, err := a.open(ctx)
		if err != nil {
			return nil, err
		}
		err = s.clearRecord(ctx)
		if err == nil {
			return s, nil
		}
		s.Gone()
		if !errors.Is(err, core.ErrLost) {
			return nil, err
		}
	}
}

// open is Open without Redis. It takes the lock.
func (a *Allotment) open(ctx context.Context) (s *Slot, err error) {
	s, w, err := a.queueToOpen(ctx)
	if w == nil {
		return s, err
	}
	defer func() { a.refused(ctx, w, err) }() // without the lock
	served, cause := w.await(ctx, nil)
	if served {
		return w.slot, w.err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.openers.withdraw(w) && w.err == nil {
		w.slot.end()
	}
	a.settle()
	if IsClosed(w.closing) {
		return nil, ErrPoolClosed
	}
	return nil, a.refusal(ctx, cause)
}

// queueToOpen opens a slot where a permit is spare, and else puts the caller in the queue. It takes
// the lock.
func (a *Allotment) queueToOpen(ctx context.Context) (*Slot, *waiter, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, nil, fmt.Errorf("passbuddy: %w", core.ErrClosed)
	}
	urgent := a.isUrgent(ctx)
	if urgent {
		a.permits.returnLent()
	}
	a.giveStale()
	if len(a.permits.spare) > 0 && (a.openers.n == 0 || urgent) {
		return a.newSlot(), nil, nil
	}
	w := a.newWaiter(ctx)
	if IsClosed(w.closing) {
		return nil, nil, ErrPoolClosed
	}
	w.began = time.Now()
	a.openers.add(w)
	a.settle()
	a.beginWait(w)
	return nil, w, nil
}

// OpenExtra opens a slot beyond those that callers have turns for, if the engine has a permit to
// spare. Otherwise it returns nil.
func (a *Allotment) OpenExtra(ctx context.Context) *Slot {
	p, err := a.engine.Try(ctx)
	if err != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !p.Held() || a.closed { // if it was lost meanwhile, Lost was called and did not find it here
		a.engine.Give(p)
		return nil
	}
	a.permits.add(p)
	return a.newSlot()
}

// CheckOut ties the caller's turn to s. It reports false if s must not be used: it was evicted, or
// its lease is lost; the turn then stays with the caller.
func (s *Slot) CheckOut() bool {
	a := s.a
	a.mu.Lock()
	ok := (s.state == idle || s.state == opening) && !s.lost && !a.closed
	if ok {
		s.uses++
		a.slots.tie()
		if s.state == idle {
			s.endIdle(out)
		} else {
			s.connected()
			s.become(out)
			if a.waiters.n > 0 {
				a.settle() // another may be dialled
			}
		}
	}
	a.mu.Unlock()
	return ok
}

// connected notes that s can be used.
func (s *Slot) connected() {
	a := s.a
	a.doubts.shut = false // the configuration serves another pool
	if len(a.doubts.outlived) > 0 {
		a.doubts.reopened = true
		a.resolveSoon()
	}
	if a.opts.PerCheckout {
		return
	}
	a.costs.connected, a.costs.failing = time.Now(), false
	smooth(&a.costs.connect, a.costs.connected.Sub(s.since))
	a.reportMove()
}
