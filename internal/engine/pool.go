package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// A Listener is a connection pool as the engine sees it. It holds permits through a Pool. The
// session tells it what the fleet wants of it, one thing after the other. No method may block, but
// for the last two.
type Listener interface {
	Granted(permits []*Permit)         // permits asked for have arrived
	Recall(n int, after time.Duration) // give n back, at the first occasion after that time
	Keep(n int)                        // n recalls are withdrawn, unless already carried out
	Promised(n int)                    // of the permits offered, n are needed: give them back
	Wanted(yes bool)                   // whether anyone in the fleet waits
	Lost(p *Permit)                    // its lease can no longer be proven
	Changed()                          // Redis went away, or came back: see Pool.Err
	Closed()                           // the session is being closed: give everything back
	Owed() int                         // permits recalled or promised, and not given back yet

	// The session asks a pool whose permits cover backends about those of other pools, over a
	// connection that the pool holds a permit for. It knows them by the tags that their pools gave
	// to RecordBackend. These two may block, for as long as ctx allows.

	// EndBackends has Postgres end those backends, and reports which are gone. Their tags lack the
	// last word.
	EndBackends(ctx context.Context, tags []string) (gone []bool)
	// BackendsGone reports which of those backends are gone, and ends none. A backend that the
	// server may not show, or that another server has had, is not gone.
	BackendsGone(ctx context.Context, tags []string) (gone []bool)
}

// A Pool is one connection pool's part of the session. Its methods send nothing themselves and call
// no Listener, so they can be called with the pool's lock held.
type Pool struct {
	s        *Session
	core     core.Pool
	listener Listener
	warned   bool // see warnHeld; guarded by Session.telling
}

// NewPool adds a connection pool to the session.
func (s *Session) NewPool(l Listener) (*Pool, error) {
	p := &Pool{s: s, listener: l}
	p.core.Owner = p
	// Heartbeats take closed pools out, and a program can close pools faster than heartbeats come.
	// Two may be needed: a heartbeat that crossed a close still counts its pool.
	for range 2 {
		s.mu.Lock()
		room := s.core.HasNumber() || s.core.Closed()
		s.mu.Unlock()
		if room {
			break
		}
		_ = s.beat(s.ctx)
	}
	err := fmt.Errorf("%w", core.ErrClosed)
	s.step(func(c *core.Core, _ time.Duration) {
		if c.Closed() {
			return
		}
		if err = nil; !c.Join(&p.core) {
			err = core.ErrManyPools
		}
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Ask says how many more permits the pool could use now; it is a level, not an increment. The
// answer is Listener.Granted.
func (p *Pool) Ask(n int) {
	p.s.step(func(c *core.Core, now time.Duration) { c.Ask(now, &p.core, n) })
}

// Give releases a permit of this pool, held or lost, in the background.
func (p *Pool) Give(permit *Permit) {
	p.s.step(func(c *core.Core, now time.Duration) { c.Give(now, &permit.Permit) })
}

// Offer asks whether anyone in the fleet needs some of n permits that lie idle. The answer is
// Listener.Promised, or nothing.
func (p *Pool) Offer(n int) {
	p.s.step(func(c *core.Core, now time.Duration) { c.Offer(now, &p.core, n) })
}

// Moved tells what it has just cost to move a permit here: see core.Core.Moved.
func (p *Pool) Moved(cost time.Duration) {
	p.s.step(func(c *core.Core, now time.Duration) { c.Moved(now, &p.core, cost) })
}

// Stay says whether the pool stays in its session though it holds and asks for nothing: see
// core.Core.Stay.
func (p *Pool) Stay(yes bool) {
	p.s.step(func(c *core.Core, _ time.Duration) { c.Stay(&p.core, yes) })
}

// Close takes the pool out of the session, once its last permit is given back. Its name is free at
// once.
func (p *Pool) Close() {
	p.s.names.unname(p)
	p.s.step(func(c *core.Core, now time.Duration) { c.ClosePool(now, &p.core) })
}

// Full reports whether the pool waits for a permit, and Redis has answered that none is free.
func (p *Pool) Full() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.core.Full()
}

// Err is why Redis cannot be asked now, matching core.ErrUnavailable, or nil.
func (p *Pool) Err() error { return read(p.s, (*core.Core).Err) }

// Try acquires one permit for the pool without waiting. It does not pass through Listener.Granted.
func (p *Pool) Try(ctx context.Context) (*Permit, error) {
	var r *core.Request
	p.s.step(func(c *core.Core, _ time.Duration) { r = c.PoolRequest(&p.core) })
	if r == nil {
		return nil, core.ErrManyPools
	}
	defer p.s.step(func(c *core.Core, _ time.Duration) { c.TryEnds(&p.core) })
	if err := p.s.wait(ctx, r); err != nil {
		return nil, err
	}
	return r.Permits[0].Owner.(*Permit), nil
}

// deliver tells the pools what the core wants them to be told, in that order. One goroutine does so
// at a time: a recall never overtakes a grant that the core has seen before it.
func (s *Session) deliver() {
	for s.deliverSome() {
	}
}

func (s *Session) deliverSome() bool {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.mu.Lock()
	events := s.events
	s.events = nil
	s.delivering = len(events) > 0
	s.mu.Unlock()
	for _, e := range events {
		s.tell(e)
	}
	return len(events) > 0
}

func (s *Session) tell(e core.Event) {
	l := e.Pool.Owner.(*Pool).listener
	switch e.Kind {
	case core.Granted:
		permits := make([]*Permit, len(e.Permits))
		for i, p := range e.Permits {
			permits[i] = p.Owner.(*Permit)
		}
		l.Granted(permits)
	case core.LeaseLost:
		l.Lost(e.Permits[0].Owner.(*Permit))
	case core.Told:
		n := 0
		s.step(func(c *core.Core, _ time.Duration) { n = c.Hear(e) })
		switch {
		case n > 0 && e.Offered:
			l.Promised(n)
		case n > 0:
			l.Recall(n, e.After)
		case n < 0:
			l.Keep(-n)
		}
	case core.Forget:
		anew := false
		s.step(func(c *core.Core, _ time.Duration) { anew = c.HearAnew(e) })
		if anew {
			l.Keep(l.Owed())
		}
	case core.MakeRoom:
		l.Recall(e.N, e.After)
	case core.Waiting:
		l.Wanted(e.Waiting)
	case core.Changed:
		l.Changed()
	case core.Closing:
		l.Closed()
	}
}
