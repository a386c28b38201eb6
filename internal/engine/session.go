// Package engine is one session of the fleet: the shell around package core. It has the lock, the
// clock, the timer and the connections to Redis that a core does without.
//
//	sender.go        sends batches, one at a time
//	heartbeat.go     sends calls, several at a time where Redis is slow
//	subscription.go  receives pushes
//	session.go       step: the only way to the core, and the one place that carries out its effects
//	pool.go          connection pools, which are told events in their order
package engine

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// Config is a session's part of a fleet. All fields are set; package semaphore documents and checks
// them.
type Config struct {
	Base                                                 string              // "<prefix>-<name>"
	Info                                                 message.SessionInfo // without figures
	Capacity, Min, Max, Weight, MaxWaiters, WaitReplicas int
	TTL, RetryInterval                                   time.Duration
	// Patience bounds a wait whose ctx has no earlier end; 0: nothing does.
	Patience time.Duration
	Logger   *slog.Logger
	// Observe is told what happens; nil: nobody is.
	Observe func(message.Observation)
}

// A Session is one process's membership in a fleet that shares a capacity. All methods can be
// called concurrently.
type Session struct {
	cfg       Config
	name      string // its part of each UUID
	keys      redisscript.Keys
	start     time.Time
	clients   clients
	caller    redis.UniversalClient // the one that New was given
	ownCaller bool                  // Close closes it
	recording chan struct{}         // bounds what record and freeGone do at once; taken before mu
	names     names                 // of its pools

	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	closeOnce func() error // close

	// telling is held while events are told to pools, and while a call of the heartbeat is made. It
	// is taken before the pools' locks, and those before mu.
	telling sync.Mutex

	mu sync.Mutex

	// Guarded by mu. No call to Redis or to a Listener is made with it held.
	core       *core.Core
	timer      *time.Timer
	timerAt    time.Duration // when the timer fires, 0: never
	starting   bool          // a sender is about to begin
	events     []core.Event
	delivering bool
	changed    *sync.Cond    // signalled by each step once the session is closing
	callEnded  chan struct{} // closed when a call ends, and replaced
	pubsub     *redis.PubSub
	refusals   int // of the subscription, in a row; only listen uses it
	holders    holders
}

func newSession(client redis.UniversalClient, own bool, cfg Config) *Session {
	s := &Session{
		cfg: cfg, name: core.SessionName(uuid.New(), cfg.Weight),
		keys: redisscript.NewKeys(cfg.Base), start: time.Now(),
		clients: clientsLike(client, cfg.TTL), caller: client, ownCaller: own,
		recording: make(chan struct{}, maxRecords), callEnded: make(chan struct{}),
	}
	s.changed = sync.NewCond(&s.mu)
	s.closeOnce = sync.OnceValue(s.close)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.core = core.New(core.Config{
		Base: cfg.Base, Session: s.name,
		TTL: cfg.TTL, Margin: cfg.TTL / 10, RetryInterval: cfg.RetryInterval,
		Capacity: cfg.Capacity, Min: cfg.Min, Max: cfg.Max, MaxWaiters: cfg.MaxWaiters,
		Replicated: cfg.WaitReplicas > 0, NewPermit: s.newPermit, NewEpoch: uuid.NewString,
		Random: func(below time.Duration) time.Duration { return rand.N(below + 1) },
	})
	return s
}

func (s *Session) now() time.Duration { return time.Since(s.start) }

// step runs f on the core with the lock held, and then carries out what follows. It does not tell
// pools itself, so a pool that is being told may call it.
func (s *Session) step(f func(c *core.Core, now time.Duration)) {
	if s.stepLocked(f) {
		go s.deliver()
	}
}

// stepAndTell is step for the session's own goroutines: it tells the pools itself.
func (s *Session) stepAndTell(f func(c *core.Core, now time.Duration)) {
	if s.stepLocked(f) {
		s.deliver()
	}
}

// stepLocked is the way to the core. It reports whether the caller has to deliver events.
func (s *Session) stepLocked(f func(c *core.Core, now time.Duration)) (deliver bool) {
	s.mu.Lock()
	f(s.core, s.now())
	fx := s.core.Take()
	for _, p := range fx.Trust {
		p.Owner.(*Permit).mirror()
	}
	s.setTimer()
	if !s.core.Left() {
		if fx.Flush && !s.starting {
			s.starting = true
			s.background(s.send)
		}
		if fx.Heartbeat {
			s.background(s.call)
		}
		if fx.Resend != nil {
			s.background(func() { s.sendAgain(fx.Resend) })
		}
		if len(fx.End)+len(fx.Look) > 0 {
			s.background(func() { s.reap(fx) })
		}
	}
	if fx.Replace {
		go s.pubsub.Close() // wakes listen; Close may wait for a dial that is under way
	}
	s.events = append(s.events, fx.Events...)
	deliver = len(s.events) > 0 && !s.delivering
	s.delivering = s.delivering || deliver
	if s.core.Closed() {
		s.changed.Broadcast()
	}
	s.mu.Unlock()

	for _, r := range fx.Settled {
		if r.Done != nil {
			close(r.Done)
		}
	}
	for _, d := range fx.Dropped {
		close(d.Done)
	}
	for _, kind := range fx.Observed {
		s.Observe(message.Observation{Kind: kind})
	}
	for _, l := range fx.Logs {
		s.cfg.Logger.Warn(l.Text, l.Args...)
	}
	return deliver
}

// read returns what f reads of the core.
func read[T any](s *Session, f func(*core.Core) T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f(s.core)
}

// background runs f, and has Close wait for it. s.mu is held, and the session has not left.
func (s *Session) background(f func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
}

// setTimer has tick called when the core wants it. A timer that fires early does no harm. s.mu is
// held.
func (s *Session) setTimer() {
	at := s.core.WakeAt()
	if at == 0 || s.timerAt > 0 && s.timerAt <= at || s.core.Left() {
		return
	}
	s.timerAt = at
	if s.timer == nil {
		s.timer = time.AfterFunc(at-s.now(), s.tick)
	} else {
		s.timer.Reset(at - s.now())
	}
}

func (s *Session) tick() {
	s.stepAndTell(func(c *core.Core, now time.Duration) {
		s.timerAt = 0
		c.Tick(now)
	})
}

// pause waits for d, or for the end of the session.
func (s *Session) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
	}
}

func (s *Session) warn(text string, args ...any) {
	s.cfg.Logger.Warn(text, append([]any{"semaphore", s.cfg.Base}, args...)...)
}

// Observe tells the session's observer, if there is one. No lock is held.
func (s *Session) Observe(o message.Observation) {
	if s.cfg.Observe != nil {
		s.cfg.Observe(o)
	}
}

// Observed reports whether there is one.
func (s *Session) Observed() bool { return s.cfg.Observe != nil }

// Client is the Redis client that the session was made with. The session sends nothing over it.
func (s *Session) Client() redis.UniversalClient { return s.caller }

// KnownCapacity is the capacity in force as last heard, or what this session declares if that is
// more.
func (s *Session) KnownCapacity() int { return read(s, (*core.Core).KnownCapacity) }

// Capacity is the capacity that this session declares.
func (s *Session) Capacity() int { return s.cfg.Capacity }

// expected returns the time that Redis's clock should show now.
func (s *Session) expected() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.Expected(s.now())
}

// SetCapacity sets the capacity for the whole fleet; 0 withdraws it.
func (s *Session) SetCapacity(ctx context.Context, n int) error {
	capacity, err := redisscript.SetCapacity(ctx, s.clients.operator, s.keys, s.expected(), n,
		s.cfg.Info.Owner)
	if err != nil {
		return s.operatorError("set capacity", err)
	}
	s.step(func(c *core.Core, _ time.Duration) { c.CapacitySet(capacity, int64(n)) })
	return nil
}

// Snapshot reads the state from Redis.
func (s *Session) Snapshot(ctx context.Context) (message.Snapshot, error) {
	raw, err := redisscript.Load(ctx, reader(s.clients.operator, s.cfg.Base), s.keys)
	if err != nil {
		return raw, s.operatorError("snapshot", err)
	}
	return raw, nil
}

// operatorError is the error of a call by which the session acts as an operator. After Close its
// clients are closed, which says nothing about Redis.
func (s *Session) operatorError(what string, err error) error {
	err = core.Unavailable(err)
	if read(s, (*core.Core).Left) {
		err = core.ErrClosed
	}
	return fmt.Errorf("%s of %q: %w", what, s.cfg.Base, err)
}

// The kinds of requests that callers make.
const (
	Wait = message.Wait
	Try  = message.Try
)

// Seam is the argument of semaphore.Semaphore.Engine.
type Seam struct{}
