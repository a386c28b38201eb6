package allotment

import (
	"context"
	"errors"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"
)

// Only pgxpool calls the methods of this file. Its pool hands out and takes back idle connections
// by itself, and opens some that no caller waits for. The allotment may have to close one of them
// in place, without the pool's knowing.

// TryEnter is Enter without a claim where no wait is needed, and false otherwise.
func (a *Allotment) TryEnter() bool {
	a.mu.Lock()
	ok := a.mayEnter()
	if ok {
		a.takeTurn(false)
	}
	a.mu.Unlock()
	return ok
}

// EnterPool is Enter for a pool that picks the connection itself. It also reports whether the turn
// stands for a connection that is idle in that pool, or is about to be. The return that the turn
// came from may still be under way.
func (a *Allotment) EnterPool(ctx context.Context) (warm bool, err error) {
	a.mu.Lock()
	w, err := a.queueForTurn(ctx, false)
	a.mu.Unlock()
	if err == nil {
		err = a.awaitTurn(ctx, w)
	}
	return w.warm, err
}

// OpenNow is Open for a caller that has a turn, and nil where it would have to wait, to ask Redis
// (see Open), or to fail.
func (a *Allotment) OpenNow() *Slot {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.giveStale()
	if a.closed || a.opts.Fence || len(a.permits.spare) == 0 || a.openers.n > 0 {
		return nil
	}
	return a.newSlot()
}

var errNoSpare = errors.New("passbuddy: no connection permit is free for a background connection")

// OpenBackground is Open for a connection that no caller waits for. It never waits itself, and
// takes no permit from a local caller: where none is spare it asks Redis for one. With
// Options.Fence it asks Redis for more, as Open does.
func (a *Allotment) OpenBackground(ctx context.Context) (*Slot, error) {
	s, err := a.openSpare(ctx, nil)
	if !errors.Is(err, errNoSpare) {
		return s, err
	}
	p, err := a.engine.Try(ctx)
	if err != nil {
		return nil, err
	}
	return a.openSpare(ctx, p)
}

// openSpare is OpenBackground under a spare permit. p, if not nil, is one more. It takes the lock.
func (a *Allotment) openSpare(ctx context.Context, p *engine.Permit) (*Slot, error) {
	a.mu.Lock()
	if p != nil {
		a.permits.add(p)
	}
	a.giveStale()
	if a.closed || a.waiters.n > 0 || a.openers.n > 0 || len(a.permits.spare) == 0 || a.available() <= 0 {
		a.settle()
		a.mu.Unlock()
		return nil, errNoSpare
	}
	s := a.newSlot()
	a.mu.Unlock()
	if err := s.clearRecord(ctx); err != nil {
		s.Gone()
		return nil, err
	}
	return s, nil
}

// Ready tells that the connection of s was opened and lies in the pool, or is about to be checked
// out.
func (s *Slot) Ready() {
	a := s.a
	a.mu.Lock()
	if s.state == opening {
		s.connected()
		s.become(idle)
		a.settle()
	}
	a.mu.Unlock()
}

// Usable reports whether s may be handed out: not evicted, and its lease not lost.
func (s *Slot) Usable() bool {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	return s.state < leaving && !s.lost
}

// Return ends the checkout of s and its turn. It reports whether s stays in the pool. If not, s is
// leaving, and its owner must close it. healthy is false for a connection that is to be closed
// anyway.
func (s *Slot) Return(healthy bool) bool {
	a := s.a
	a.mu.Lock()
	if s.state == out {
		a.slots.endCheckout()
		if healthy && !s.lost && s.permit != nil && a.debts.owed == 0 && a.debts.evicting == 0 && !a.closed {
			s.makeIdle()
			if a.waiters.n > 0 || a.openers.n > 0 ||
				a.offers.wanted && (!a.offers.timed || a.available() > 1) {
				a.settle()
			}
			a.mu.Unlock()
			return true
		}
	}
	stays := s.endUse(healthy)
	a.settle()
	a.mu.Unlock()
	return stays
}

// Evict makes an idle s leave, if an idle slot has to end at all. The caller must then close its
// connection.
func (s *Slot) Evict() bool { return s.leaveIdleIf(s.a.mustEvict) }

// SweepIdle makes slots leave that have lain idle, untouched, since a sweep at least maxIdle ago,
// the oldest first and only while more than keep are open. It returns them for closing.
func (a *Allotment) SweepIdle(maxIdle time.Duration, keep int) []*Slot {
	old, _ := a.sweep(max(maxIdle, 1), false, keep)
	return old
}

// SetOutside tells how many connections live outside the pool for good (pgxpool's Hijack): they do
// not count against Options.MaxConns.
func (a *Allotment) SetOutside(n int) {
	a.mu.Lock()
	if n != a.outside {
		a.outside = n
		a.settle()
	}
	a.mu.Unlock()
}

// Crowded reports whether callers wait only because the pool may hold no more connections, and how
// many are out.
func (a *Allotment) Crowded() (n int, yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	full := a.opts.MaxConns > 0 && a.owned() >= a.opts.MaxConns+a.outside
	return a.slots.n[out], full && a.waiters.n > 0
}
