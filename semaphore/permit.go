package semaphore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
)

// A Permit is one unit of the capacity. Acquire, TryAcquire and AcquireN make permits that are
// held; NewPermit makes one that is not held yet. It can be acquired again after it was released.
// All methods can be called concurrently.
//
// The life of a permit:
//
//	        Acquire, Use                    Release
//	free ------------------> held ----------------------> free
//	                          |                            ^
//	                          | lease cannot be proven     | Release; or Acquire, which then
//	                          v                            | queues like anyone else
//	                         lost -------------------------+
//
// Every time around it gets a new UUID: a release that was delayed on its way can then never take
// away a later lease.
type Permit struct {
	s *Semaphore

	// turn is held by the one goroutine that acquires or releases. It is a channel, so that a
	// caller can give up waiting for it.
	turn chan struct{}
	now  atomic.Pointer[engine.Permit] // the current or next lease's; changed with turn held

	mu    sync.Mutex
	users int  // of Do, Bind and Handler, guarded by mu: the last to leave releases
	due   bool // guarded by mu: the latest to leave wanted the permit released; false without users
}

// NewPermit returns a permit that is not held yet.
func (s *Semaphore) NewPermit() *Permit { return s.newPermit(s.engine.NewPermit()) }

func (s *Semaphore) newPermit(now *engine.Permit) *Permit {
	p := &Permit{s: s, turn: make(chan struct{}, 1)}
	p.now.Store(now)
	return p
}

// renew gives p a new UUID, under which it is not held.
func (p *Permit) renew() { p.now.Store(p.s.engine.NewPermit()) }

// ID is the UUID of the permit's current or next lease. It changes when the permit is acquired
// again after a release or a loss.
func (p *Permit) ID() string { return p.now.Load().ID }

// Held reports whether the lease can be proven now. It asks only the local monotonic clock. It
// turns false some time before Redis would give the permit to another, even if Redis cannot be
// reached.
func (p *Permit) Held() bool { return p.now.Load().Held() }

// Lost is closed when the lease can no longer be proven. Acquiring the permit again makes a new
// channel.
func (p *Permit) Lost() <-chan struct{} { return p.now.Load().Lost() }

// Acquire acquires the permit, waiting its turn in the fleet, or extends the lease of one that is
// held. The wait is bounded by MaxAttempts x RetryInterval, which is 2.5s by default, also under
// context.Background(). Config.MaxAttempts below zero lifts that bound.
//
// Errors: ErrCapacity if it was not granted in that time or before ctx ended; ErrUnavailable if
// Redis did not answer in that time; ErrLost if it was held and Redis no longer knows it;
// ErrClosed. The context's error matches too if it was the cause.
func (p *Permit) Acquire(ctx context.Context) error {
	if err := p.begin(ctx, ErrCapacity); err != nil {
		return err
	}
	defer p.end()
	return p.acquire(ctx)
}

// Use does nothing if the permit is held, and is Acquire otherwise. Held costs no round trip.
func (p *Permit) Use(ctx context.Context) error {
	if p.Held() {
		return nil
	}
	if err := p.begin(ctx, ErrCapacity); err != nil {
		return err
	}
	defer p.end()
	if p.Held() {
		return nil
	}
	return p.acquire(ctx)
}

var errBusy = errors.New("semaphore: not released, the permit is just being acquired")

// begin waits for its turn to change the permit; reason is why it has none if ctx ends first.
func (p *Permit) begin(ctx context.Context, reason error) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return engine.GiveUp(ctx, reason)
	}
}

func (p *Permit) end() { <-p.turn }

// acquire is called with turn held.
func (p *Permit) acquire(ctx context.Context) error {
	lease := p.now.Load()
	switch lease.State() {
	case core.Held:
		return p.s.engine.Extend(ctx, lease)
	case core.Lost:
		p.renew()
		lease = p.now.Load()
	}
	err := p.s.engine.Acquire(ctx, engine.Wait, lease)
	if err != nil {
		p.renew() // what became of the request may be unknown, so its UUID is never used again
	}
	return err
}

// Release gives the permit back; the next in the fleet's queue gets it at once. Releasing one that
// is not held does nothing.
//
// The release goes through even if ctx is done: it outlives its caller, bounded by the lease. An
// error means that Redis did not confirm it yet. The session tries again in the background, and
// does not renew the lease any more.
func (p *Permit) Release(ctx context.Context) error {
	return p.releaseIf(ctx, func() bool { return true })
}

// releaseIf is Release if due says so in the instant of the release.
func (p *Permit) releaseIf(ctx context.Context, due func() bool) error {
	// The wait for a concurrent Acquire does heed ctx.
	if err := p.begin(ctx, errBusy); err != nil {
		return err
	}
	defer p.end()
	released := false
	err := p.s.engine.Release(p.now.Load(), func() bool {
		released = due()
		return released
	})
	if released && p.now.Load().State() == core.Released {
		p.renew()
	}
	return err
}

// enter counts a user in, and leave one out; the last one releases the permit unless it is to be
// kept.
func (p *Permit) enter(ctx context.Context, use bool) error {
	p.mu.Lock()
	p.users++
	p.mu.Unlock()
	if !use {
		return nil
	}
	err := p.Use(ctx)
	// Between the end of ctx and now, another user can have been granted the permit, and have left
	// the release to those that are counted in. If this caller is the last of them, the release is
	// its own. It has given up, so it does not wait for Redis.
	if err != nil && p.countOut() {
		go p.releaseLast(ctx)
	}
	return err
}

func (p *Permit) leave(ctx context.Context, keep bool) error {
	p.mu.Lock()
	p.due = !keep
	p.mu.Unlock()
	if !p.countOut() {
		return nil
	}
	return p.releaseLast(ctx)
}

// countOut counts a user out, unless it is the last one and the release is due: that one has to call
// releaseLast.
func (p *Permit) countOut() (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last = p.due && p.users == 1
	if !last {
		p.users--
	}
	return last
}

// releaseLast counts the last user out, and releases the permit. If a user enters before the instant
// of the release, it uses the permit as it is, and the release is left to it. A user that enters
// after that instant finds the permit free.
func (p *Permit) releaseLast(ctx context.Context) error {
	return p.releaseIf(context.WithoutCancel(ctx), func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.users--
		p.due = p.users > 0
		return !p.due
	})
}

// whileHeld returns a context that ends with cause ErrLost when the lease of the permit is lost.
// The caller must call the function, which ends the context and returns whether the lease was lost.
func (p *Permit) whileHeld(ctx context.Context) (context.Context, func() bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	lost := p.Lost()
	go func() {
		select {
		case <-lost:
			cancel(ErrLost)
		case <-ctx.Done():
		}
	}()
	return ctx, func() bool {
		cancel(nil)
		select {
		case <-lost: // the goroutine may not have told ctx yet
			return true
		default:
			return false
		}
	}
}

// Do uses the permit (see Use), runs fn, and releases it. If the lease is lost meanwhile, fn's
// context ends with cause ErrLost and Do's error matches ErrLost. When calls of Do, Bind and
// Handler overlap on one permit, the last to end releases.
func (p *Permit) Do(ctx context.Context, fn func(context.Context) error) (err error) {
	return p.run(ctx, false, fn)
}

func (p *Permit) run(ctx context.Context, keep bool, fn func(context.Context) error) (err error) {
	if err := p.enter(ctx, true); err != nil {
		return err
	}
	// Deferred, so that a panic in fn releases, too.
	defer func() {
		if released := p.leave(ctx, keep); err == nil {
			err = released
		}
	}()
	inner, stop := p.whileHeld(ctx)
	defer stop()
	err = fn(inner)
	if stop() && !errors.Is(err, ErrLost) {
		err = errors.Join(ErrLost, err)
	}
	return err
}
