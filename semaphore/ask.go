package semaphore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// An ask is a request for permits on its way:
//
//	outbox --> in flight --> waiting in Redis's queue --> settled
//	   ^                          |
//	   +--------------------------+  looked after again: every RetryInterval, when something expires, after a reconnect
//
// It is in Semaphore.asks, under each of its UUIDs, until it is settled. A grant that arrives for a UUID
// that is not there crossed a withdrawal, and is dropped.
type ask struct {
	kind    redisscript.Kind
	permits []*Permit
	ids     []string
	share   *Share // for kind Share: any number of the permits can be granted
	extends bool   // the permit is held, and stays so if this is withdrawn
	done    chan struct{}

	// Guarded by Semaphore.mu; err is read after done is closed.
	err      error
	since    time.Duration // when it was submitted
	settled  bool
	behind   bool // waits for room below Config.Max
	queued   bool // in the outbox
	sent     bool // Redis may know it
	answered bool // Redis does
	waited   bool // an answer left it in Redis's queue
	full     bool // the last answer found no permit free
	noMemory bool // the last answer had no memory for it
}

func (s *Semaphore) newAsk(kind redisscript.Kind, share *Share, permits ...*Permit) *ask {
	return &ask{kind: kind, permits: permits, share: share, done: make(chan struct{})}
}

// wait sends a and waits until it is settled or its caller may wait no longer.
func (s *Semaphore) wait(ctx context.Context, a *ask) error {
	if err := ctx.Err(); err != nil {
		return err // nothing was asked, so nothing is known of the capacity
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("%w", ErrClosed)
	}
	s.submit(a)
	limit := s.patience(a.kind)
	s.send(ctx, limit)
	select {
	case <-a.done:
		if a.err != nil && ctx.Err() != nil {
			return giveUp(ctx, a.err)
		}
		return a.err
	default:
	}

	var timeout <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
	case <-timeout:
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if a.settled && a.err != nil {
		return a.err
	}
	reason := fmt.Errorf("%w: %q granted nothing within %v", ErrCapacity, s.base, limit)
	if ctx.Err() != nil {
		reason = fmt.Errorf("%w: %q", ErrCapacity, s.base)
	}
	switch {
	case s.down != nil:
		reason = unavailable(s.down)
	case a.noMemory:
		reason = unavailable(errNoMemory)
	case !a.answered:
		reason = fmt.Errorf("%w: no answer", ErrUnavailable)
	}
	if a.settled && a.extends {
		return nil
	}
	if a.settled {
		// The grant crossed the end of our patience. It goes back.
		for _, p := range a.permits {
			s.release(p)
		}
		s.fly()
	} else {
		s.withdraw(a, ErrCapacity)
	}
	return giveUp(ctx, reason)
}

// patience bounds a wait that ctx does not end earlier. A request that does not wait in Redis's queue is
// bounded by one lease from when it is sent: after that the answer would be worth nothing. Before, it may
// have to let the flight under way land, which takes as long as replies do. s.mu is held.
func (s *Semaphore) patience(kind redisscript.Kind) time.Duration {
	if !waits(kind) {
		return s.cfg.TTL + min(2*s.heart.rtt, s.cfg.TTL)
	}
	if s.cfg.MaxAttempts < 0 {
		return 0
	}
	return time.Duration(s.cfg.MaxAttempts) * s.cfg.RetryInterval
}

// waits reports whether a request of that kind waits in the queue.
func waits(kind redisscript.Kind) bool {
	return kind == redisscript.Wait || kind == redisscript.Share
}

// submit puts a into the outbox, or behind others where Config.Max leaves no room. The caller sends it. s.mu is held.
func (s *Semaphore) submit(a *ask) {
	if a.ids == nil {
		a.since = s.sinceStart()
		for _, p := range a.permits {
			a.ids = append(a.ids, p.id)
		}
		for _, id := range a.ids {
			s.asks[id] = a
		}
		if s.cfg.Max > 0 && !a.extends && !s.admit(a) {
			return
		}
	}
	s.putOut(a)
}

// putOut puts a into the outbox, if it is not there. s.mu is held.
func (s *Semaphore) putOut(a *ask) {
	if !a.queued {
		a.queued = true
		s.outbox = append(s.outbox, a)
	}
}

// settle ends a. s.mu is held.
func (s *Semaphore) settle(a *ask, err error) {
	a.settled = true
	a.err = err
	for _, id := range a.ids {
		delete(s.asks, id)
	}
	if a.share != nil && a.share.ask == a {
		a.share.ask = nil
	}
	close(a.done)
	s.settleBelowMax(a)
}

// withdraw takes back an ask that is not settled, whose caller gets err: out of the outbox, and out of Redis if it may be
// known there. The drop is sent after every flight that carries the ask. s.mu is held.
func (s *Semaphore) withdraw(a *ask, err error) {
	if a.settled {
		return
	}
	s.settle(a, err)
	if a.queued {
		for i, other := range s.outbox {
			if other == a {
				s.outbox = append(s.outbox[:i:i], s.outbox[i+1:]...)
				break
			}
		}
		a.queued = false
	}
	if !a.sent || a.extends {
		return
	}
	if a.kind == redisscript.Share {
		s.drop(a.ids[:1]...) // what stands in the queue
		s.drop(a.ids[1:]...)
	} else {
		s.drop(a.ids...)
	}
	s.fly()
}

// A drop is a release, or the withdrawal of a request, on its way.
type drop struct {
	ids     []string
	plain   bool          // it is one permit that no pool holds, and nothing that may wait in the queue
	covered bool          // it is of a permit that covered a backend: Redis may count that on after its lease
	since   time.Duration // when it was asked for; after a lease there is nothing left to drop
	done    chan error    // receives the outcome of the first try
}

// drop puts the removal of permits, or of the request they form, among what is to be sent. The caller sends it. s.mu is held.
func (s *Semaphore) drop(ids ...string) *drop {
	d := &drop{ids: ids, since: s.sinceStart(), done: make(chan error, 1)}
	if len(ids) > 0 {
		s.drops = append(s.drops, d)
	}
	return d
}

// release frees p, whether held or lost, and gives it a new UUID. The caller sends it. s.mu is held.
func (s *Semaphore) release(p *Permit) *drop {
	id, covered := p.id, p.marks > 0
	if p.state == held {
		delete(s.permits, id)
		if p.share != nil {
			p.share.held--
		}
		s.madeRoom()
	}
	p.renewID()
	d := s.drop(id)
	d.plain, d.covered = p.share == nil, covered
	return d
}

// extend renews the lease of one held permit at once.
func (s *Semaphore) extend(ctx context.Context, p *Permit) error {
	a := s.newAsk(redisscript.Hold, nil, p)
	a.extends = true
	err := s.wait(ctx, a)
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrLost) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state == lost {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}
