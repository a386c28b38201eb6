package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// A Permit is one unit of the capacity, under one UUID: it is held at most once.
type Permit struct {
	core.Permit // guarded by s.mu, but for ID

	s       *Session
	trusted atomic.Int64  // mirrors core.Permit.TrustedUntil, so that Held needs no lock
	lost    chan struct{} // made at the first call of Lost; guarded by s.mu
}

func (s *Session) newPermit() *core.Permit {
	p := &Permit{s: s}
	p.Owner = p
	return &p.Permit
}

// mirror takes what the core has changed. s.mu is held. One step can change p more than once, and
// mirror then runs as often.
func (p *Permit) mirror() {
	p.trusted.Store(int64(p.TrustedUntil()))
	if p.Permit.State() != core.Lost || p.lost == nil {
		return
	}
	select {
	case <-p.lost: // closed already
	default:
		close(p.lost)
	}
}

// NewPermit returns a permit that was not asked for yet.
func (s *Session) NewPermit() *Permit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.NewPermit().Owner.(*Permit)
}

// Held reports whether the lease can be proven now. It asks only the local monotonic clock.
func (p *Permit) Held() bool { return p.s.now() < time.Duration(p.trusted.Load()) }

// State is where p is in its life. A permit whose time is over is lost, even if nothing has said so
// yet.
func (p *Permit) State() (state core.State) {
	p.s.step(func(c *core.Core, now time.Duration) {
		c.LoseIfOver(now, &p.Permit)
		state = p.Permit.State()
	})
	return state
}

// Lost is closed when the lease can no longer be proven.
func (p *Permit) Lost() <-chan struct{} {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.lost == nil {
		p.lost = make(chan struct{})
		if p.Permit.State() == core.Lost {
			close(p.lost)
		}
	}
	return p.lost
}

// Acquire acquires all of the permits together, or none. Errors match core's; the context's error
// and its cause match too if they ended the wait.
func (s *Session) Acquire(ctx context.Context, kind message.Kind, permits ...*Permit) error {
	r := &core.Request{Kind: kind}
	for _, p := range permits {
		r.Permits = append(r.Permits, &p.Permit)
	}
	return s.wait(ctx, r)
}

// AcquireN acquires n permits together, or none, as Acquire does.
func (s *Session) AcquireN(ctx context.Context, kind message.Kind, n int) ([]*Permit, error) {
	permits := make([]*Permit, n)
	for i := range permits {
		permits[i] = s.NewPermit()
	}
	if err := s.Acquire(ctx, kind, permits...); err != nil {
		return nil, err
	}
	return permits, nil
}

// Extend renews the lease of one held permit at once.
func (s *Session) Extend(ctx context.Context, p *Permit) error {
	err := s.wait(ctx, &core.Request{
		Kind: message.Hold, Permits: []*core.Permit{&p.Permit}, Extends: true,
	})
	if err == nil || ctx.Err() != nil || errors.Is(err, core.ErrLost) {
		return err
	}
	if p.State() == core.Lost {
		return fmt.Errorf("%w: %w", core.ErrLost, err)
	}
	return err
}

// wait submits r, and waits until it is settled or its caller may wait no longer.
func (s *Session) wait(ctx context.Context, r *core.Request) error {
	if err := ctx.Err(); err != nil {
		return err // nothing was asked, so nothing is known of the capacity
	}
	r.Done = make(chan struct{})
	limit := s.cfg.Patience
	closed := false
	s.step(func(c *core.Core, now time.Duration) {
		if closed = c.Closed(); closed {
			return
		}
		if !r.Kind.Waits() {
			limit = c.TryPatience()
		}
		c.Submit(now, r)
	})
	if closed {
		return fmt.Errorf("%w", core.ErrClosed)
	}
	// A long wait has two parts: at the end of the first, the session reads who holds the permits.
	first := readAfter
	if limit > 0 {
		first = min(first, limit)
	}
	timer := time.NewTimer(first)
	defer timer.Stop()
	for waited := time.Duration(0); ; {
		select {
		case <-r.Done:
			if _, err := r.Settled(); err != nil {
				return GiveUp(ctx, err)
			}
			return nil
		case <-ctx.Done():
			return GiveUp(ctx, s.giveUp(r, 0, waited > 0)) // the limit did not end the wait
		case <-timer.C:
		}
		if waited > 0 || first == limit {
			return GiveUp(ctx, s.giveUp(r, limit, waited > 0))
		}
		waited = first
		if r.Kind.Waits() {
			s.readHoldersSoon()
		}
		if limit > 0 {
			timer.Reset(limit - first)
		}
	}
}

// giveUp takes r back. The error of a caller that has waited for long names the connections that
// stay out and hold permits, as far as that is known.
func (s *Session) giveUp(r *core.Request, limit time.Duration, long bool) (reason error) {
	s.step(func(c *core.Core, now time.Duration) { reason = c.GiveUp(now, r, limit) })
	if fleet, _ := s.Holders(); long && fleet != "" && errors.Is(reason, core.ErrCapacity) {
		reason = fmt.Errorf("%w; %s: see %s", reason, fleet, message.HeldDocument)
	}
	return reason
}

// GiveUp adds to reason why the caller stopped waiting. Both the context's error and its cause can
// be matched.
func GiveUp(ctx context.Context, reason error) error {
	if ctx.Err() == nil || reason == nil {
		return reason
	}
	return fmt.Errorf("%w (%w)", reason, ContextError(ctx))
}

// ContextError is why ctx ended. It matches the context's own error too, where the cause is
// another.
func ContextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// Release frees p if due says so in the instant of the release, and waits until Redis has confirmed
// it, for a lease at most. An error means that Redis did not confirm it yet: the session tries
// again in the background. Releasing a permit that is neither held nor lost does nothing.
func (s *Session) Release(p *Permit, due func() bool) error {
	var d *core.Drop
	s.step(func(c *core.Core, now time.Duration) {
		if !due() || c.Left() {
			return
		}
		wasHeld := p.Permit.State() == core.Held
		if d = c.Release(now, &p.Permit); d == nil || !wasHeld {
			d = nil // lost: no caller relies on it, and Redis may be away
			return
		}
		d.Done = make(chan struct{})
	})
	if d == nil {
		return nil
	}
	select {
	case <-d.Done:
		return d.Err
	case <-time.After(s.cfg.TTL):
		return fmt.Errorf("release: %w", core.Unavailable(context.DeadlineExceeded))
	}
}
