// Package semaphore is a distributed counting semaphore on Redis: any number of processes share one
// capacity, and never hold more permits together than that.
//
// A permit is held by a lease on Redis's clock. One heartbeat renews all leases of a process.
// Waiters queue in Redis, first come first served across the fleet, and Redis pushes a grant to the
// waiter. A process notices by its own monotonic clock when a lease can no longer be proven, before
// Redis gives the permit to another.
//
// It promises that the permits which their holders can prove never exceed the capacity. That holds
// through crashes, lost messages, retries, clock steps of clients, and a Redis that loses all its
// state while its holders live.
//
// It does not promise that through an asynchronous failover of Redis, which can forget the last
// grants. A process that is frozen while it works goes on when it wakes, until it looks at Held or
// Lost. docs/SAFETY.md has the proof, and the table of windows.
package semaphore

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisurl"
)

// A Semaphore is one session: one process's membership in a fleet that shares a capacity. It has
// one heartbeat, one subscription, and any number of permits. All methods can be called
// concurrently.
type Semaphore struct {
	cfg    Config
	base   string // "<prefix>-<name>"
	engine *engine.Session
}

// New joins the fleet at the Redis of the caller's client. The session takes the client's options
// and opens connections of its own: for requests, for the heartbeat, for the subscription, and for
// Snapshot and SetCapacity while they are used. So a busy client cannot starve the session. The
// client stays the caller's, who keeps it open until Close.
//
// Hooks of the client (AddHook) do not apply to the session. In particular a hook that prefixes
// keys does not change the session's: use Config.Prefix to tell tenants apart. The session does not
// take over options that would hurt it. Those are replica reads, Limiter, caches, the sizes of the
// pool, and time-outs that are long beside the lease.
//
// New finds the options of a *redis.Client (NewFailoverClient's included) and of a
// *redis.ClusterClient. It also finds them in a struct that embeds one of them, or a
// redis.UniversalClient which holds one. With any other type of client the session shares the
// client's connections, and New logs a warning that names the type. An application that keeps all
// of those busy, for example with blocking commands, then starves the heartbeat, and leases are
// lost. They are lost, too, if a network forgets many of the client's idle connections: each costs
// the heartbeat a call.
//
// New asks Redis before it returns, for as long as ctx allows, 5s at most. It returns an error for
// a field of cfg that it refuses, and for a *redis.Ring. The error matches ErrUnavailable, and has
// its cause, if Redis cannot be reached, wants other credentials, is older than 6.0, or is out of
// memory. The same goes for a node of a Redis Cluster, unless the client is a *redis.ClusterClient.
// If Redis refuses the subscription, as some proxies do, New logs a warning and goes on: see
// Config.RetryInterval.
func New(ctx context.Context, client redis.UniversalClient, cfg Config) (*Semaphore, error) {
	return open(ctx, client, false, cfg)
}

// Open is New with a client of its own, made from a redis://, rediss:// or unix:// URL. Close
// closes it. The options after the ? are those of go-redis, and say what stands there:
//
//	redis://user:password@host:6379/0                                  one Redis
//	redis://user:password@host:6379?addr=host2:6379&addr=host3:6379    a Redis Cluster
//	redis://user:password@host:26379/0?master_name=m&addr=host2:26379  Sentinels
//
// One addr is enough to make it a Cluster, the URL's own host again if there is no other. With
// Sentinels the user and password before the @ are theirs; Redis's own are the options username and
// password. See redis.ParseURL, redis.ParseClusterURL and redis.ParseFailoverURL.
func Open(ctx context.Context, rawURL string, cfg Config) (*Semaphore, error) {
	if _, err := cfg.withDefaults(); err != nil {
		return nil, err
	}
	place, err := redisurl.Parse(rawURL)
	switch {
	case errors.Is(err, redisurl.ErrUnreadable):
		return nil, fmt.Errorf("semaphore: the Redis URL cannot be parsed: %w", err)
	case err != nil:
		return nil, fmt.Errorf("semaphore: Redis URL: %w", err)
	}
	client := place.Client()
	s, err := open(ctx, client, true, cfg)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return s, nil
}

func open(
	ctx context.Context, client redis.UniversalClient, own bool, cfg Config,
) (*Semaphore, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Semaphore{cfg: cfg, base: cfg.base()}
	s.engine, err = engine.Open(ctx, client, own, cfg.forEngine())
	var refused message.RefusedMin
	if errors.As(err, &refused) {
		err = fmt.Errorf("%w: %w", ErrCapacity,
			refuse("Min", cfg.Min, "cannot be guaranteed: "+refused.Error()))
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Acquire waits for a permit, first come first served across the fleet. The wait is bounded by
// MaxAttempts x RetryInterval, which is 2.5s by default, also under context.Background().
// Config.MaxAttempts below zero lifts that bound. Errors are those of [Permit.Acquire].
func (s *Semaphore) Acquire(ctx context.Context) (*Permit, error) {
	return first(s.acquire(ctx, engine.Wait, 1))
}

// TryAcquire acquires a permit if one is free and no request waits for it. It makes one round trip
// and never waits for a permit; it returns ErrCapacity where Acquire would wait.
func (s *Semaphore) TryAcquire(ctx context.Context) (*Permit, error) {
	return first(s.acquire(ctx, engine.Try, 1))
}

// AcquireN waits for n permits together: it gets all of them or none, within the bound of Acquire.
// While it is at the head of the queue, smaller requests do not pass it. It refuses more than the
// whole capacity at once with ErrCapacity, and more than 1,000 with an error that says so.
func (s *Semaphore) AcquireN(ctx context.Context, n int) ([]*Permit, error) {
	if n < 1 || n > maxTogether {
		return nil, fmt.Errorf("semaphore: AcquireN: n is %d: it must be from 1 to %d",
			n, maxTogether)
	}
	if most := s.engine.KnownCapacity(); n > most {
		return nil, fmt.Errorf("%w: %q has %d permits in all, %d were asked for together",
			ErrCapacity, s.base, most, n)
	}
	if s.cfg.Max > 0 && n > s.cfg.Max {
		return nil, fmt.Errorf("%w: Config.Max is %d, %d permits were asked for together",
			ErrCapacity, s.cfg.Max, n)
	}
	return s.acquire(ctx, engine.Wait, n)
}

func (s *Semaphore) acquire(ctx context.Context, kind message.Kind, n int) ([]*Permit, error) {
	held, err := s.engine.AcquireN(ctx, kind, n)
	if err != nil {
		return nil, err
	}
	permits := make([]*Permit, n)
	for i, p := range held {
		permits[i] = s.newPermit(p)
	}
	return permits, nil
}

func first(permits []*Permit, err error) (*Permit, error) {
	if err != nil {
		return nil, err
	}
	return permits[0], nil
}

// Client is the Redis client that was given to New, or made by Open. The session sends nothing over
// it: see New.
func (s *Semaphore) Client() redis.UniversalClient { return s.engine.Client() }

// SetCapacity sets the capacity for the whole fleet, at once and until it is set again, whatever
// its sessions declare. Raising it grants to those that wait. Lowering it revokes nothing: the
// fleet drains to it. 0 withdraws it, and the smallest capacity that a live session declares is in
// force again.
func (s *Semaphore) SetCapacity(ctx context.Context, n int) error {
	if err := checkCapacity(n); err != nil {
		return err
	}
	return s.engine.SetCapacity(ctx, n)
}

func checkCapacity(n int) error {
	if n < 0 || n > maxCapacity {
		return fmt.Errorf("semaphore: SetCapacity: %d: it must be from 0 to %d", n, maxCapacity)
	}
	return nil
}

// Close releases all permits and ends the session. Waiting calls return ErrClosed; permits turn not
// held, and their Lost is closed. Close asks connection pools to end their connections first, for
// up to 3s; better close them before. An error means that Redis did not answer: what was held then
// ends with its lease. With passbuddy.Config.Fence, permits whose connections did not end in those
// 3s end with their leases, too. Closing twice does nothing.
func (s *Semaphore) Close() error { return s.engine.Close() }

// Engine is how this module's own packages put connection pools under the semaphore. Its argument
// has a type of an internal package, so no other program can call it.
func (s *Semaphore) Engine(engine.Seam) *engine.Session { return s.engine }
