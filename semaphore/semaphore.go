// Package semaphore is a distributed counting semaphore on Redis: any number of processes share one
// capacity, and never hold more permits together than that.
//
// A permit is held by a lease on Redis's clock, renewed by one heartbeat for the whole process. Waiters queue in Redis, first come
// first served across the fleet, and are pushed to when it is their turn. A process notices by its own monotonic clock when a
// lease can no longer be proven, before Redis gives the permit to another.
//
// What it promises: the permits that holders may believe in never exceed the capacity, through crashes, lost messages, retries, clock steps of
// clients, and a Redis that loses all its state while its holders live. What it does not: an asynchronous failover of Redis can
// forget the last grants, and a process that is frozen while it works goes on when it wakes, until it looks at Held
// or Lost. ARCHITECTURE.md says more.
package semaphore

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// A Semaphore is one session: one process's membership in a fleet that shares a capacity. It has one heartbeat, one subscription, and
// any number of permits. All methods can be called concurrently.
type Semaphore struct {
	cfg       Config
	base      string // "<prefix>-<name>"
	keys      redisscript.Keys
	identity  *identity
	info      string
	margin    time.Duration // see heartbeat.go
	start     time.Time
	log       *slog.Logger
	client    redis.UniversalClient // the caller's
	ownClient bool                  // client is closed by Close

	own           redis.UniversalClient // see lines
	flightClient  redis.UniversalClient
	operator      redis.UniversalClient
	wires         *wires
	borrowed      bool
	listenTimeout time.Duration // of the subscription's connection, where it can have one of its own

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	pubsub *redis.PubSub

	marking   chan struct{} // bounds what record and freeGone do at once; taken before mu
	closeOnce sync.Once
	closeErr  error

	mu sync.Mutex

	// Guarded by mu. No call to Redis or to a Sharer is made with it held, and a Sharer's lock is taken
	// before it, never after.
	permits    map[string]*Permit // held
	asks       map[string]*ask    // not settled
	outbox     []*ask             // to be sent
	drops      []*drop            // to be sent
	late       []*drop            // to be sent again
	ending     map[string]*ending // see endBackends
	looking    bool               // see look
	offers     []offer
	aloft      *batch        // the batch under way, or nil
	aloftSince time.Duration // when it was sent
	aloftWatch *time.Timer   // see lookAtFlight
	hung       bool          // the connection of the batch under way was cut because it was dead
	flying     bool
	flights    uint64        // flights that callers began; see send
	carried    uint64        // the last of them that landed
	cut        bool          // the connection of the flight that a caller carries was cut
	roundTrip  time.Duration // of the last flight
	behind     []*ask        // see max.go
	asked      int           // permits asked for and not settled, those behind excepted
	making     bool          // room is being made below Config.Max
	again      *time.Timer   // see lookAgain
	againAt    time.Duration
	heart      heart         // see calls.go
	renewed    time.Duration // when the latest call was sent that was answered
	watchdog   *time.Timer   // see watch
	watchAt    time.Duration
	shares     []*Share
	sharers    int           // the highest number that a share ever had
	vacant     []vacancy     // numbers of shares that are away, to be used again
	toldAt     time.Duration // when a push last said that somebody waits
	epoch      string
	sharded    bool
	capacity   int64 // in force, as last heard
	limit      int64 // set by an operator, as last heard, or 0
	min        int64 // kept for this session, as last heard
	roster     int64 // live sessions, as last heard
	anchor     anchor
	moveCost   time.Duration // see Share.Moved
	confirms   bool          // it is to be said at once
	down       error         // why Redis did not answer the last call, or nil
	noMemory   error         // why Redis grants nothing new although it answers, or nil
	memoryAt   int64         // Redis's time of the last word on that
	listening  listening
	closed     bool // nothing is acquired any more
	left       bool // nothing is sent any more
	returned   *sync.Cond
}

// New joins the fleet at the Redis of the caller's client. The session takes the client's options
// and opens connections of its own: for requests, for the heartbeat, for the subscription, and for
// Snapshot and SetCapacity while they are used. So a busy client cannot starve the session. The
// client stays the caller's, who keeps it open until Close.
//
// Hooks of the client (AddHook) do not apply to the session. In particular a hook that prefixes
// keys does not change the session's: use Config.Prefix to tell tenants apart. The session does not
// take over options that would hurt it: those that send reads to replicas, Limiter, caches, the
// sizes of the pool, and time-outs that are long beside the lease.
//
// New finds the options of a *redis.Client (NewFailoverClient's included), of a
// *redis.ClusterClient, and of a struct that embeds one of them, or that embeds a
// redis.UniversalClient which holds one. With any other type of client the session shares the
// client's connections, and New logs a warning that names the type. An application that keeps all
// of those busy, for example with blocking commands, then starves the heartbeat, and leases are
// lost.
//
// New asks Redis before it returns, for at most 5s. It returns an error for a field of cfg that it
// refuses, and for a *redis.Ring. The error matches ErrUnavailable, and has its cause, if Redis
// cannot be reached, wants other credentials, is older than 6.0, or is out of memory. The same goes
// for a node of a Redis Cluster, unless the client is a *redis.ClusterClient. If Redis refuses the
// subscription, as some proxies do, New logs a warning and goes on: see Config.RetryInterval.
func New(client redis.UniversalClient, cfg Config) (*Semaphore, error) {
	return newSemaphore(context.Background(), client, false, cfg)
}

// Open is New with a client of its own, made from a redis://, rediss:// or unix:// URL (see
// redis.ParseURL). Close closes it. For a Cluster, or for Sentinels, use New.
func Open(ctx context.Context, rawURL string, cfg Config) (*Semaphore, error) {
	if _, err := cfg.withDefaults(); err != nil {
		return nil, err
	}
	opt, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(opt)
	s, err := newSemaphore(ctx, client, true, cfg)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return s, nil
}

func (s *Semaphore) sinceStart() time.Duration { return time.Since(s.start) }

func (s *Semaphore) ttlMillis() int64 { return s.cfg.TTL.Milliseconds() }

// Acquire waits for a permit, first come first served across the fleet. Errors are those of [Permit.Acquire].
func (s *Semaphore) Acquire(ctx context.Context) (*Permit, error) {
	p := s.NewPermit()
	if err := s.wait(ctx, s.newAsk(redisscript.Wait, nil, p)); err != nil {
		return nil, err
	}
	return p, nil
}

// TryAcquire acquires a permit if one is free and nobody waits for it. It makes one round trip and never waits for a permit;
// it returns ErrCapacity where Acquire would.
func (s *Semaphore) TryAcquire(ctx context.Context) (*Permit, error) {
	p := s.NewPermit()
	if err := s.wait(ctx, s.newAsk(redisscript.Try, nil, p)); err != nil {
		return nil, err
	}
	return p, nil
}

// AcquireN waits for n permits together: it gets all of them or none. While it is at the head of
// the queue, smaller requests do not pass it. More than the whole capacity is refused at once with ErrCapacity, and more than 1,000
// with an error that says so.
func (s *Semaphore) AcquireN(ctx context.Context, n int) ([]*Permit, error) {
	if n < 1 || n > maxTogether {
		return nil, fmt.Errorf("semaphore: AcquireN: n is %d: it must be from 1 to %d", n, maxTogether)
	}
	if most := s.knownCapacity(); n > most {
		return nil, fmt.Errorf("%w: %q has %d permits in all, %d were asked for together", ErrCapacity, s.base, most, n)
	}
	if s.cfg.Max > 0 && n > s.cfg.Max {
		return nil, fmt.Errorf("%w: Config.Max is %d, %d permits were asked for together", ErrCapacity, s.cfg.Max, n)
	}
	permits := make([]*Permit, n)
	for i := range permits {
		permits[i] = s.NewPermit()
	}
	if err := s.wait(ctx, s.newAsk(redisscript.Wait, nil, permits...)); err != nil {
		return nil, err
	}
	return permits, nil
}

// knownCapacity is the capacity in force as last heard, or what this session declares if that is more.
func (s *Semaphore) knownCapacity() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(int(s.capacity), s.cfg.Capacity)
}

// Capacity is what this session declares (Config.Capacity).
func (s *Semaphore) Capacity() int { return s.cfg.Capacity }

// Client is the Redis client that was given to New, or made by Open. The session sends nothing over
// it: see New.
func (s *Semaphore) Client() redis.UniversalClient { return s.client }

// SetCapacity sets the capacity for the whole fleet, at once and until it is set again, whatever its sessions declare. Raising it
// grants to those who wait. Lowering it revokes nothing: the fleet drains to it. 0 withdraws it, and the smallest
// capacity that a live session declares is in force again.
func (s *Semaphore) SetCapacity(ctx context.Context, n int) error {
	if n < 0 || n > maxCapacity {
		return fmt.Errorf("semaphore: SetCapacity: %d: it must be from 0 to %d", n, maxCapacity)
	}
	s.mu.Lock()
	expected := s.anchor.expected(s.sinceStart())
	s.mu.Unlock()
	capacity, err := redisscript.SetCapacity(ctx, s.operator, s.keys, expected, n)
	if err != nil {
		return fmt.Errorf("set capacity of %q: %w", s.base, unavailable(err))
	}
	s.mu.Lock()
	s.capacity, s.limit = capacity, int64(n)
	s.mu.Unlock()
	return nil
}
