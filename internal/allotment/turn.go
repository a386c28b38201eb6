package allotment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
)

// Enter takes a turn, waiting in the local queue while none is free. With claim, an idle slot comes
// with the turn where there is one; it is then out, and its pool must not hand it to anyone else.
//
// A turn that is not tied to a slot by [Slot.CheckOut] is given back with [Allotment.Exit].
//
// A slot can come with an error, to a caller that gave up as the slot had to end. The caller closes
// it, and has no turn.
func (a *Allotment) Enter(ctx context.Context, claim bool) (*Slot, error) {
	a.mu.Lock()
	if a.mayEnter() {
		s := a.takeTurn(claim)
		a.mu.Unlock()
		return s, nil
	}
	w, err := a.queueForTurn(ctx, claim)
	a.mu.Unlock()
	if err == nil {
		err = a.awaitTurn(ctx, w)
	}
	return w.slot, err
}

// mayEnter reports whether a turn is free, and no caller and no debt comes first.
func (a *Allotment) mayEnter() bool {
	return !a.closed && a.waiters.n == 0 && a.debts.owed == 0 && a.mayTake()
}

// takeTurn gives a turn that is known to be available.
func (a *Allotment) takeTurn(claim bool) (s *Slot) {
	if !a.slots.idleLeft() && a.slots.dials() == 0 {
		a.dialing = time.Now()
	}
	a.slots.turns++
	if claim {
		s = a.claim()
	}
	if a.offers.timed {
		a.offers.low = min(a.offers.low, a.available())
	}
	return s
}

// queueForTurn puts a caller in the queue, and serves it at once where that is possible.
func (a *Allotment) queueForTurn(ctx context.Context, claim bool) (*waiter, error) {
	w := a.newWaiter(ctx)
	w.claim = claim
	switch {
	case a.closed:
		return w, fmt.Errorf("passbuddy: %w", core.ErrClosed)
	case ctx.Err() != nil:
		return w, ctx.Err()
	case IsClosed(w.closing):
		return w, ErrPoolClosed
	}
	w.began, w.out, w.returns = time.Now(), a.slots.n[out], a.slots.returns
	a.waiters.add(w)
	a.backlog.begin(w.began)
	a.patience.miss(w.began, 4*a.unusedFor())
	a.settle()
	a.beginWait(w)
	return w, nil
}

// awaitTurn waits until the caller is served, or may wait no longer. It takes the lock.
func (a *Allotment) awaitTurn(ctx context.Context, w *waiter) (err error) {
	defer func() { a.refused(ctx, w, err) }() // without the lock
	served, cause := w.await(ctx, time.After(a.timeLeft(ctx)))
	if served {
		return w.err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.waiters.withdraw(w) && w.err == nil {
		// Served while the caller was giving up. The turn goes to the next one. A slot that came
		// with it was never touched, and is idle again, unless it has to end by now.
		switch s := w.slot; {
		case s == nil:
			a.slots.untie()
		case s.staysOpen():
			s.become(idle)
			s.unclaim()
			a.slots.untie()
			w.slot = nil
		default:
			s.quit() // which ends its turn, if it has one
		}
	}
	a.settle()
	if IsClosed(w.closing) {
		return ErrPoolClosed
	}
	err = a.refusal(ctx, cause)
	if errors.Is(err, core.ErrCapacity) && a.engine.AtCapacity() == core.ErrCapacity {
		return a.explain(err, w)
	}
	return err
}

// refusal is the error of a caller that waited as long as it may; cause is nil for AcquireTimeout.
// It matches ErrUnavailable if Redis cannot be asked, ErrCapacity if the fleet was full, and then
// the context's error and its cause.
//
// A caller that hung up while nothing was known to be full gets the context's own error, as from a
// bare pool. An operator who counts ErrCapacity to raise the capacity must not count those. While
// grants are paused, the error says so, and by whom.
func (a *Allotment) refusal(ctx context.Context, cause error) error {
	reason := a.engine.AtCapacity()
	if err := a.engine.Err(); err != nil {
		reason = err
	} else if errors.Is(cause, core.ErrCapacity) {
		return cause // see OpenWithin
	} else if ctx.Err() != nil && cause != nil && reason == core.ErrCapacity && !a.engine.Full() {
		return ctx.Err()
	}
	if cause == nil {
		return fmt.Errorf("passbuddy: no connection permit within %v: %w", a.opts.AcquireTimeout, reason)
	}
	return engine.GiveUp(ctx,
		fmt.Errorf("passbuddy: gave up waiting for a connection permit: %w", reason))
}

// Exit gives back a turn that is tied to no slot.
func (a *Allotment) Exit() {
	a.mu.Lock()
	a.slots.untie()
	a.settle()
	a.mu.Unlock()
}
