package semaphore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// A Permit is one unit of the capacity. It is made by Acquire, TryAcquire and AcquireN, already held, or by
// NewPermit, not held yet. It can be acquired again after it was released. All methods can be called concurrently.
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
// Every time around it gets a new UUID: a release that was delayed on its way can
// then never take away a later lease.
type Permit struct {
	s     *Semaphore
	share *Share // the connection pool it belongs to, nil for all others

	// op is held by the one goroutine that acquires or releases; it is a channel so that waiting for it can be given up. A pool's permit has none: it is
	// acquired and released through its Share alone, and there is one for each idle connection.
	op chan struct{}

	// trusted is until when the permit is held, in nanoseconds since the semaphore's start, even if Redis stays
	// silent. Measured from before the request was sent, so a slow reply only shortens it. Zero when not held.
	trusted atomic.Int64

	// Guarded by s.mu.
	id    string
	state permitState
	lost  chan struct{} // made when somebody asks for it
	users int           // of Do, Bind and Handler: the last to leave releases

	backend Backend // that it covers; see Share.Cover
	marks   uint32  // how often it was said which that is, or that there is none
	vacant  bool    // Redis has confirmed that there is none; see Share.Vacate

	named uint64 // the last call of the heartbeat that names it

	delivering bool // its pool has not heard yet of the grant, and must not hear of a loss before
}

type permitState uint8

const (
	free permitState = iota
	held
	lost
)

// NewPermit returns a permit that is not held yet.
func (s *Semaphore) NewPermit() *Permit { return s.newPermit(nil) }

func (s *Semaphore) newPermit(share *Share) *Permit {
	owner := s.identity.plain()
	if share != nil {
		owner = share.name
	}
	p := &Permit{s: s, share: share, id: s.identity.next(owner)}
	if share == nil {
		p.op = make(chan struct{}, 1)
	}
	return p
}

// ID is the UUID of the permit's current or next lease. It changes when the permit is acquired again after a
// release or a loss.
func (p *Permit) ID() string {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.id
}

// Held reports whether the lease can be proven now. It asks only the local monotonic clock. Some time before Redis would give
// the permit to another it turns false, also when Redis cannot be reached.
func (p *Permit) Held() bool { return p.s.sinceStart() < time.Duration(p.trusted.Load()) }

// Lost is closed when the lease can no longer be proven. Acquiring the permit again makes a new channel.
func (p *Permit) Lost() <-chan struct{} {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.lost == nil {
		p.lost = make(chan struct{})
		if p.state == lost {
			close(p.lost)
		}
	}
	return p.lost
}

// lose makes p lost. s.mu is held.
func (p *Permit) lose() {
	p.state = lost
	p.trusted.Store(0)
	if p.lost != nil {
		close(p.lost)
	}
}

// Acquire acquires the permit, waiting its turn in the fleet, or extends the lease of one that is held.
//
// Errors: ErrCapacity if it was not granted within MaxAttempts x RetryInterval or before ctx ended; ErrUnavailable if Redis
// did not answer in that time; ErrLost if it was held and Redis no longer knows it; ErrClosed. The context's error matches too if it was the cause.
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
	case p.op <- struct{}{}:
		return nil
	default:
	}
	select {
	case p.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return giveUp(ctx, reason)
	}
}

func (p *Permit) end() { <-p.op }

// acquire is entered with op held.
func (p *Permit) acquire(ctx context.Context) error {
	s := p.s
	s.mu.Lock()
	if p.state == held && !p.Held() {
		s.lose(p) // its time is over and the watchdog is about to say so
	}
	if p.state == held {
		s.mu.Unlock()
		return s.extend(ctx, p)
	}
	if p.state == lost {
		p.renewID()
	}
	s.mu.Unlock()

	err := s.wait(ctx, s.newAsk(redisscript.Wait, nil, p))
	if err != nil {
		// What became of the request may be unknown, so its UUID is never used again.
		s.mu.Lock()
		p.renewID()
		s.mu.Unlock()
	}
	return err
}

// renewID makes the permit free, with a new UUID. s.mu is held.
func (p *Permit) renewID() {
	owner := p.s.identity.plain()
	if p.share != nil {
		owner = p.share.name
	}
	p.id = p.s.identity.next(owner)
	if p.state == lost {
		p.lost = nil
	}
	p.state = free
	p.backend, p.marks, p.vacant = Backend{}, 0, false
	p.trusted.Store(0)
}

// Release gives the permit back; the next in the fleet's queue gets it at once. Releasing one that is not held does nothing.
//
// The release goes through even if ctx is done: it outlives its caller, bounded by the lease. An error means that Redis did not confirm it yet;
// it is tried again in the background, and the lease is not renewed any more.
func (p *Permit) Release(ctx context.Context) error {
	return p.releaseIf(ctx, func() bool { return true })
}

// releaseIf is Release if due, which is called with s.mu held, says so in the instant of the release.
func (p *Permit) releaseIf(ctx context.Context, due func() bool) error {
	// The wait for a concurrent Acquire does heed ctx.
	if err := p.begin(ctx, errBusy); err != nil {
		return err
	}
	defer p.end()
	s := p.s
	s.mu.Lock()
	if !due() || p.state == free || s.closed {
		s.mu.Unlock()
		return nil
	}
	wasHeld := p.state == held
	d := s.release(p)
	if !wasHeld {
		s.fly()
		s.mu.Unlock()
		return nil // lost: nobody counts on it, and Redis may be away
	}
	s.send(context.WithoutCancel(ctx), s.cfg.TTL)
	select {
	case err := <-d.done:
		return err
	default:
	}
	timer := time.NewTimer(s.cfg.TTL)
	defer timer.Stop()
	select {
	case err := <-d.done:
		return err
	case <-timer.C:
		return fmt.Errorf("release: %w", unavailable(context.DeadlineExceeded))
	}
}

// enter counts a user in, and leave one out; the last one releases the permit unless it is to be kept.
func (p *Permit) enter(ctx context.Context, use bool) error {
	p.s.mu.Lock()
	p.users++
	p.s.mu.Unlock()
	if !use {
		return nil
	}
	if err := p.Use(ctx); err != nil {
		p.s.mu.Lock()
		p.users--
		p.s.mu.Unlock()
		return err
	}
	return nil
}

func (p *Permit) leave(ctx context.Context, keep bool) error {
	p.s.mu.Lock()
	if keep || p.users > 1 {
		p.users--
		p.s.mu.Unlock()
		return nil
	}
	p.s.mu.Unlock()
	// Who enters before the instant of the release uses the permit as it is, and we are not the last; who enters after it finds
	// the permit free.
	return p.releaseIf(context.WithoutCancel(ctx), func() bool {
		p.users--
		return p.users == 0
	})
}

// whileHeld returns a context that ends with cause ErrLost when the lease of the permit is lost, and a
// function that ends it and must be called.
func (p *Permit) whileHeld(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	lost := p.Lost()
	go func() {
		select {
		case <-lost:
			cancel(ErrLost)
		case <-done:
		}
	}()
	return ctx, func() { close(done); cancel(context.Canceled) }
}

// Do uses the permit (see Use), runs fn, and releases it. If the lease is lost meanwhile, fn's context ends with cause ErrLost and Do's
// error matches ErrLost. When calls of Do, Bind and Handler overlap on one permit, the last to end releases.
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
	if errors.Is(context.Cause(inner), ErrLost) && !errors.Is(err, ErrLost) {
		err = errors.Join(ErrLost, err)
	}
	return err
}
