package semaphore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/engine"
)

// An Inspector sees and steers a fleet without being one of its sessions. It declares no capacity,
// sends no heartbeat, and has no goroutine. Each call opens connections with the options of the
// caller's client, and closes them: see [New] for what it does not take over. All methods can be
// called concurrently. Their errors match ErrUnavailable if Redis cannot be asked.
type Inspector struct {
	// Operator is shown to others as who set the capacity, paused the fleet or evicted a session.
	// Default "<user>@<host>". At most 200 bytes. Set it before the first call.
	Operator string

	engine *engine.Operator
}

// NewInspector returns an inspector of the semaphore with that prefix and name; "" is the default
// of Config. It returns an error for a name that Config refuses, and for a *redis.Ring. It asks
// Redis nothing: a semaphore that nobody has joined yet is empty.
func NewInspector(client redis.UniversalClient, prefix, name string) (*Inspector, error) {
	cfg, err := Config{Prefix: prefix, Name: name}.withDefaults()
	if err != nil {
		return nil, err
	}
	operator, err := engine.NewOperator(client, cfg.base())
	if err != nil {
		return nil, err
	}
	return &Inspector{Operator: whoami(), engine: operator}, nil
}

func whoami() string {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, _ := os.Hostname()
	return clean(name + "@" + host)
}

// List returns the names of the semaphores with that prefix that have state in Redis, sorted. "" is
// the default prefix of Config. It looks at all of Redis's keys, a thousand at a time.
func List(ctx context.Context, client redis.UniversalClient, prefix string) ([]string, error) {
	cfg, err := Config{Prefix: prefix}.withDefaults()
	if err != nil {
		return nil, err
	}
	return engine.List(ctx, client, cfg.Prefix)
}

// Snapshot reads the state from Redis. It writes nothing. It reads in pages, so that no command
// keeps Redis from the fleet: what changes meanwhile is there in its old or its new form.
func (i *Inspector) Snapshot(ctx context.Context) (Snapshot, error) {
	raw, err := i.engine.Snapshot(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	return newSnapshot(raw), nil
}

// SetCapacity sets the capacity for the whole fleet: see [Semaphore.SetCapacity]. 0 withdraws it.
func (i *Inspector) SetCapacity(ctx context.Context, n int) error {
	if err := checkCapacity(n); err != nil {
		return err
	}
	return i.engine.SetCapacity(ctx, n, clean(i.Operator))
}

// PauseOptions say how [Inspector.Pause] pauses. The zero value pauses until Resume.
type PauseOptions struct {
	// Drain also recalls all that is held, minima included, and waits until nothing is held.
	Drain bool
	// Timeout bounds that wait. After it the fleet resumes by itself, even if the process that
	// called Pause has ended. Default 0: ctx alone bounds it, and the fleet stays paused.
	Timeout time.Duration
	// For is how long the pause lasts, after the drain if there is one. Then the fleet resumes by
	// itself. Default 0: until Resume. At most 30 days.
	For time.Duration
	// Reason is shown to others. Control characters are removed, and it is cut at 200 bytes.
	Reason string
}

// ErrStillHeld is returned by Pause and Evict when permits are still held at the end of the wait.
var ErrStillHeld = errors.New("semaphore: permits are still held")

const (
	maxPause  = 30 * 24 * time.Hour
	drainPoll = 50 * time.Millisecond
	// drainExtra is the time that Pause asks for beyond Timeout, to say that the drain has been
	// reached.
	drainExtra = 5 * time.Second
	// EvictTimeout is EvictOptions.Timeout where that is zero.
	evictTimeout = 10 * time.Second
	// EvictAgain is how often Evict recalls again while permits are left.
	evictAgain = time.Second
)

// Pause has the fleet grant nothing new. Held permits stay held and are renewed, connections that
// are open serve their pools, and requests wait in the queue: their callers' own bounds end their
// waits. A pause outlives the loss of Redis's state, as long as a session lives that has heard of
// it, which takes a third of a lease.
//
// With Drain, Pause recalls all permits, and returns once none is held: then no connection of the
// fleet is open. Connections end as their callers return them. Permits that no pool holds (Acquire,
// passbuddy run), and those of other clients, are waited for. If ctx ends, or permits are still
// held after Timeout, Pause returns an error that matches ErrStillHeld or ctx's error.
//
// Pausing a paused fleet replaces how long it lasts, and why.
func (i *Inspector) Pause(ctx context.Context, opts PauseOptions) error {
	by, reason := clean(i.Operator), clean(opts.Reason)
	switch {
	case opts.Timeout < 0, opts.For < 0:
		return errors.New("semaphore: Pause: a time must not be negative")
	case opts.Timeout > maxPause, opts.For > maxPause:
		return fmt.Errorf("semaphore: Pause: the longest time is %v", maxPause)
	case opts.Timeout > 0 && !opts.Drain:
		return errors.New("semaphore: Pause: PauseOptions.Timeout is for a drain: " +
			"set For, or Drain")
	}
	lasts := time.Duration(-1)
	if opts.For > 0 {
		lasts = opts.For
	}
	if !opts.Drain {
		return i.engine.Pause(ctx, lasts, false, by, reason)
	}
	// With a Timeout the pause has an end from the beginning: this process may not live to resume.
	draining := time.Duration(-1)
	if opts.Timeout > 0 {
		draining = opts.Timeout + drainExtra
	}
	if err := i.engine.Pause(ctx, draining, true, by, reason); err != nil {
		return err
	}
	began := time.Now()
	err := i.engine.Await(ctx, drainPoll, func(held int64) (bool, error) {
		if held > 0 && opts.Timeout > 0 && time.Since(began) >= opts.Timeout {
			return false, fmt.Errorf("%w: %d after %v", ErrStillHeld, held, opts.Timeout)
		}
		return held == 0, nil
	})
	switch {
	case errors.Is(err, ErrStillHeld):
		return errors.Join(err, i.engine.Resume(context.WithoutCancel(ctx), by))
	case err != nil:
		return err
	case draining == lasts:
		return nil
	}
	return i.engine.Pause(ctx, lasts, true, by, reason)
}

// Resume ends a pause, also while it drains: permits that were recalled for it and are not given
// back yet stay. It does nothing if the fleet is not paused by an operator.
func (i *Inspector) Resume(ctx context.Context) error {
	return i.engine.Resume(ctx, clean(i.Operator))
}

// EvictOptions say how [Inspector.Evict] evicts.
type EvictOptions struct {
	// Force revokes the permits that the session still holds after Timeout: it cannot renew their
	// leases. The session then ends their connections; with passbuddy.Config.Fence others end their
	// Postgres backends, should it not. A permit is free once its backend is gone, or, without
	// Fence, at the end of its lease.
	Force bool
	// Timeout bounds the wait for permits that were recalled. Default 10s.
	Timeout time.Duration
	// Reason is shown to others. At most 200 bytes.
	Reason string
}

// Evict takes back all that one session holds, by its [Session].ID. The session's pools close their
// connections as their callers return them, and may ask for new ones afterwards, behind those that
// wait. Permits that no pool holds can only be revoked.
//
// Evict returns once the permits that were recalled are given back, and an error that matches
// ErrStillHeld if some are not after Timeout; with Force it revokes those, and returns nil.
func (i *Inspector) Evict(ctx context.Context, session string, opts EvictOptions) error {
	by, reason := clean(i.Operator), clean(opts.Reason)
	if opts.Timeout < 0 {
		return errors.New("semaphore: Evict: EvictOptions.Timeout must not be negative")
	}
	timeout := opts.Timeout
	if timeout == 0 {
		timeout = evictTimeout
	}
	before, err := i.engine.Snapshot(ctx)
	if err != nil {
		return err
	}
	if _, known := before.Sessions[session]; !known {
		return fmt.Errorf("semaphore: Evict: there is no session %q", session)
	}
	if _, err := i.engine.Evict(ctx, session, false, by, reason); err != nil {
		return err
	}
	began := time.Now()
	recalled := began
	for {
		now, err := i.engine.Snapshot(ctx)
		if err != nil {
			return err
		}
		left := 0
		for id := range before.Permits {
			if _, held := now.Permits[id]; held && sessionOf(id) == session {
				left++
			}
		}
		switch {
		case left == 0:
			return nil
		case time.Since(began) < timeout:
			// A pool owes a number of permits. It may have paid with one that it was granted since,
			// for one that a caller still had.
			if time.Since(recalled) >= evictAgain {
				recalled = time.Now()
				if err := i.engine.EvictOn(ctx, session); err != nil {
					return err
				}
			}
		case !opts.Force:
			return fmt.Errorf("%w: %d of session %q after %v", ErrStillHeld, left, session, timeout)
		default:
			_, err := i.engine.Evict(ctx, session, true, by, reason)
			return err
		}
		select {
		case <-time.After(2 * drainPoll):
		case <-ctx.Done():
			return fmt.Errorf("%w: %d of session %q (%w)", ErrStillHeld, left, session, ctx.Err())
		}
	}
}

// An Event is an entry of the fleet's log, which keeps some 200 changes.
type Event struct {
	At      time.Time // Redis's clock
	Kind    EventKind
	Session string // whom it concerns, or ""
	Owner   string // of that session
	By      string // the operator, or ""
	Detail  string // for people
}

// An EventKind says what an Event is about.
type EventKind string

// The kinds of events. Others may be added.
const (
	EventJoined      EventKind = "joined"
	EventLeft        EventKind = "left"
	EventExpired     EventKind = "expired"     // the session sent no heartbeat for a lease
	EventGone        EventKind = "gone"        // its backends were seen gone, and its permits freed
	EventQuarantined EventKind = "quarantined" // its leases ended, but its backends may be there
	EventReported    EventKind = "reported"    // leases lost, an outage of Redis, backends ended
	EventCapacity    EventKind = "capacity"
	EventPaused      EventKind = "paused"
	EventDrained     EventKind = "drained" // paused, and all permits recalled
	EventResumed     EventKind = "resumed"
	EventEvicted     EventKind = "evicted"
	EventRevoked     EventKind = "revoked"
	EventStateLost   EventKind = "state lost" // Redis lost its state
)

// Events returns the log, the oldest entry first.
func (i *Inspector) Events(ctx context.Context) ([]Event, error) {
	raw, err := i.engine.Events(ctx)
	if err != nil {
		return nil, err
	}
	events := make([]Event, len(raw))
	for n, e := range raw {
		at, _ := strconv.ParseInt(e.At, 10, 64)
		events[n] = Event{At: time.UnixMilli(at), Kind: EventKind(e.Kind), Session: e.Session,
			Owner: clean(e.Owner), By: clean(e.By), Detail: clean(e.Detail)}
	}
	return events, nil
}
