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
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// startTimeout bounds what New does before it knows that Redis answers.
const startTimeout = 5 * time.Second

// leaveAfterFailure bounds how long New, which failed, tries to take back what it told Redis.
const leaveAfterFailure = time.Second

// closeTimeout bounds how long Close waits for connection pools to end their connections, and for Redis.
const closeTimeout = 3 * time.Second

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

	marking   chan struct{} // serialises record; taken before mu
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
	vacant     []vacancy     // numbers of shares that are closed, to be used again
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

// parseURL is redis.ParseURL, without a piece of the password in its errors. They quote what they refuse, and in a password that is not
// encoded a slash or a question mark ends the authority: what follows it, up to the @ of the authority that was meant, is then path or query.
func parseURL(rawURL string) (*redis.Options, error) {
	opt, err := redis.ParseURL(rawURL)
	if err == nil {
		return opt, nil
	}
	u, parse := url.Parse(rawURL)
	if parse != nil || strings.Contains(u.Path+u.RawQuery+u.Fragment+u.Opaque, "@") {
		return nil, errors.New("semaphore: the Redis URL cannot be parsed: is the port a number, and are user and password percent-encoded?")
	}
	return nil, fmt.Errorf("semaphore: Redis URL: %w", err)
}

func newSemaphore(ctx context.Context, client redis.UniversalClient, ownClient bool, cfg Config) (*Semaphore, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	base := cfg.Prefix + "-" + cfg.Name
	s := &Semaphore{
		cfg: cfg, base: base, keys: redisscript.NewKeys(base), identity: newIdentity(cfg.Weight), info: encodeInfo(cfg),
		margin: cfg.TTL / 10, start: time.Now(), log: cfg.Logger,
		client: client, ownClient: ownClient,
		permits: make(map[string]*Permit), asks: make(map[string]*ask), capacity: int64(cfg.Capacity), min: int64(cfg.Min),
		marking: make(chan struct{}, 1), ending: make(map[string]*ending),
	}
	l := dedicated(client, cfg.TTL)
	s.own, s.flightClient, s.wires, s.listenTimeout = l.own, l.flights, l.wires, l.listenTimeout
	s.operator, s.borrowed = l.operator, l.borrowed
	if s.borrowed {
		s.log.Warn("the Redis client shows no options, so the session has no connections of its own: "+
			"if the application keeps all of the client's busy for a lease, leases are lost",
			"semaphore", base, "type", fmt.Sprintf("%T", client))
	}
	s.returned = sync.NewCond(&s.mu)
	s.heart = newHeart()
	s.ctx, s.cancel = context.WithCancel(context.Background())

	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// Three round trips in a row: connections, joining, subscribing. What does not depend on the one before
	// goes over a connection of its own, at the same time.
	var beside sync.WaitGroup
	beside.Go(func() { s.loadExchange(ctx) })
	beside.Go(func() { s.pubsub = s.connectSubscription(ctx) })
	if err := s.join(ctx); err != nil {
		s.mu.Lock()
		s.left = true
		asked := s.heart.last > 0
		s.mu.Unlock()
		if asked { // Redis may have taken us in all the same
			ctx, cancel := context.WithTimeout(context.Background(), leaveAfterFailure)
			_ = s.leave(ctx, nil)
			cancel()
		}
		s.cancel()
		s.closeOwn()
		beside.Wait()
		if s.pubsub != nil {
			_ = s.pubsub.Close()
		}
		s.wg.Wait()
		return nil, err
	}
	beside.Wait()
	s.subscribe(ctx)
	s.wg.Add(1)
	go s.heartbeats()
	return s, nil
}

// loadExchange has Redis load the script of requests, over the connection that will carry them, so that the
// first caller pays for neither. It releases a permit that nobody holds. An error costs nothing: the first
// request then does the same.
func (s *Semaphore) loadExchange(ctx context.Context) {
	x := redisscript.Exchange{Session: s.identity.session, TTLMillis: s.ttlMillis(), Load: true,
		Release: []string{s.identity.next(s.identity.plain())}}
	ctx, cancel := context.WithTimeout(ctx, max(s.cfg.TTL, startTimeout/2))
	defer cancel()
	_, _ = x.Run(ctx, s.flightClient, s.keys)
}

func (s *Semaphore) join(ctx context.Context) error {
	var server serverInfo
	var serverErr error
	var asked sync.WaitGroup
	asked.Go(func() { server, serverErr = inspectServer(ctx, s.own) })
	err := s.firstBeat(ctx)
	asked.Wait()
	if tooOld := server.check(); tooOld != nil {
		return fmt.Errorf("join %q: %w", s.base, unavailable(tooOld))
	}
	if err != nil && serverErr != nil {
		err = serverErr // refused credentials, or no connection at all: it is said best here
	}
	if server.mayEvict() {
		s.log.Warn("this Redis may evict keys, and with them permits: set maxmemory-policy noeviction",
			"semaphore", s.base, "maxmemory-policy", server.policy)
	}
	var refused redisscript.RefusedMin
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrCapacity, refuse("Min", s.cfg.Min, "cannot be guaranteed: "+refused.Error()))
	case err != nil:
		return fmt.Errorf("join %q: %w", s.base, unavailable(err))
	}
	return nil
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

// Close releases all permits and ends the session. Waiting calls return ErrClosed; permits turn not held, and
// their Lost is closed. Connection pools are asked to end their connections first, for up to 3s; better close them before. An error
// means that Redis did not answer: what was held then ends with its lease. So do permits with passbuddy.Config.Fence whose connections did not end
// in those 3s. Closing twice does nothing.
func (s *Semaphore) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Semaphore) close() error {
	s.mu.Lock()
	s.closed = true
	// Requests are withdrawn while we still listen, by the drops of a last flight: a grant that crosses
	// its withdrawal is then dropped with it.
	for id, a := range s.asks {
		if id == a.ids[0] {
			s.withdraw(a, fmt.Errorf("%w", ErrClosed))
		}
	}
	s.offers = nil
	s.mu.Unlock()
	s.tellShares(func(sh Sharer) { sh.Closed() })

	s.mu.Lock()
	s.awaitReturns()
	s.left = true
	var requests []string
	requests = s.takeDrops()
	for id, p := range s.permits {
		if p.marks == 0 { // else its pool could not end that in time: it stays counted until others have
			requests = append(requests, redisscript.Request(s.ttlMillis(), id))
		}
		p.lose()
	}
	clear(s.permits)
	for _, t := range []*time.Timer{s.again, s.watchdog} {
		if t != nil {
			t.Stop()
		}
	}
	s.mu.Unlock()

	err := s.leaveForGood(requests)
	s.cancel()
	s.mu.Lock()
	ps := s.pubsub
	s.mu.Unlock()
	_ = ps.Close()
	s.closeOwn() // which ends what still waits for a reply
	s.wg.Wait()
	if s.ownClient {
		_ = s.client.Close()
	}
	if err != nil {
		return fmt.Errorf("leave %q: %w", s.base, unavailable(err))
	}
	return nil
}

// takeDrops is what is still to be removed, as requests: what was not sent, what Redis did not answer, and
// what it may not answer. s.mu is held.
func (s *Semaphore) takeDrops() (requests []string) {
	drops := append(s.drops, s.late...)
	if s.aloft != nil {
		drops = append(drops, s.aloft.drops...)
	}
	s.drops, s.late = nil, nil
	for _, d := range drops {
		requests = append(requests, redisscript.Request(s.ttlMillis(), d.ids...))
		select {
		case d.done <- nil:
		default:
		}
	}
	return requests
}

// leaveForGood leaves, and leaves again if something was on its way meanwhile that Redis may have executed
// after that: a call of the heartbeat would have us join anew, and a flight can have been granted permits
// that nobody waits for any more. Nothing new begins, as s.left is set. It waits for their replies for as
// long as they can be expected to take, then leaves it at that.
func (s *Semaphore) leaveForGood(requests []string) error {
	s.mu.Lock()
	limit := max(closeTimeout, min(4*s.heart.rtt, 2*closeTimeout))
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	crossing := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.heart.calls) > 0 || s.flying
	}
	crossed := crossing()
	if err := s.leave(ctx, requests); err != nil || !crossed {
		return err
	}
	s.mu.Lock()
	late := time.NewTimer(min(closeTimeout/3, max(4*s.heart.rtt, time.Second/2)))
	s.mu.Unlock()
	defer late.Stop()
	for waiting := true; waiting && crossing(); {
		s.mu.Lock()
		ended := s.heart.ended
		s.mu.Unlock()
		select {
		case <-ended:
		case <-time.After(5 * time.Millisecond): // a flight
		case <-late.C:
			waiting = false
		}
	}
	s.mu.Lock()
	requests = append(requests, s.takeDrops()...) // all of it: what crossed may have brought back what the first one dropped
	s.mu.Unlock()
	return s.leave(ctx, requests)
}

// leave takes the session out of Redis, with what requests name. It can be said twice, and is, over another
// connection, if there is no answer for a while.
func (s *Semaphore) leave(ctx context.Context, requests []string) error {
	s.mu.Lock()
	epoch, again := s.epoch, max(s.hedgeAfter(), 4*s.heart.rtt, closeTimeout/12)
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const tries = 3
	left := make(chan error, tries)
	for sent, failed := 0, 0; ; {
		if sent < tries {
			sent++
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				s.mu.Lock()
				expected := s.anchor.expected(s.sinceStart())
				s.mu.Unlock()
				left <- redisscript.Leave(ctx, s.own, s.keys, true, expected, s.identity.session, epoch, requests)
			}()
		}
		select {
		case err := <-left:
			if failed++; err == nil || failed == sent && (sent == tries || !isBroken(err)) {
				return err
			}
		case <-time.After(again):
			again *= 2
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitReturns waits until the connection pools have given everything back and nothing is on its way to Redis any
// more, bounded. s.mu is held.
func (s *Semaphore) awaitReturns() {
	late := false
	timer := time.AfterFunc(closeTimeout, func() {
		s.mu.Lock()
		late = true
		s.mu.Unlock()
		s.returned.Broadcast()
	})
	defer timer.Stop()
	for !late {
		held := 0
		for _, sh := range s.shares {
			held += sh.held
		}
		if held == 0 && (!s.flying || s.down != nil) {
			return // if Redis does not answer, what is held ends with its lease
		}
		s.returned.Wait()
	}
}

func (s *Semaphore) closeOwn() {
	if s.borrowed {
		return
	}
	for _, c := range []redis.UniversalClient{s.own, s.flightClient, s.operator} {
		_ = c.Close()
	}
}
