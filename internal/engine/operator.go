package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// An Operator sees and steers a fleet from outside: it has no session. Errors match
// core.ErrUnavailable.
type Operator struct {
	client redis.UniversalClient
	base   string
	keys   redisscript.Keys

	mu    sync.Mutex
	told  int64     // guarded by mu: Redis's clock, as a script last said, ms
	asked time.Time // guarded by mu: when that script was sent
}

// toldFor is how long the last answer of a script tells what Redis's clock should show.
const toldFor = time.Minute

// expected returns what Redis's clock should show now, or 0 if that is not known.
func (o *Operator) expected(now time.Time) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	age := now.Sub(o.asked)
	if o.told == 0 || age > toldFor {
		return 0
	}
	return o.told + age.Milliseconds()
}

// run runs a script of the operator's. It tells the script what Redis's clock should show, so that
// the script notices if the clock was set meanwhile. The first one knows no time: see notice_step
// of sessions.lua.
func (o *Operator) run(
	script func(expected int64) (redisscript.Counted, error),
) (redisscript.Counted, error) {
	sent := time.Now()
	got, err := script(o.expected(sent))
	if err != nil {
		return got, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if sent.After(o.asked) {
		o.told, o.asked = got.Now, sent
	}
	return got, nil
}

// NewOperator returns an operator of the semaphore base. client stays the caller's.
func NewOperator(client redis.UniversalClient, base string) (*Operator, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	return &Operator{client: client, base: base, keys: redisscript.NewKeys(base)}, nil
}

// withClient runs f with a client that has the options of client, but not its hooks, caches and
// replica reads, which lead elsewhere. Its connections end with f.
func withClient(client redis.UniversalClient, f func(c redis.UniversalClient) error) error {
	own := clientsLike(client, time.Second)
	defer own.close()
	return f(own.operator)
}

func (o *Operator) do(what string, f func(c redis.UniversalClient) error) error {
	if err := withClient(o.client, f); err != nil {
		return fmt.Errorf("%s of %q: %w", what, o.base, core.Unavailable(err))
	}
	return nil
}

// Snapshot reads the state.
func (o *Operator) Snapshot(ctx context.Context) (raw message.Snapshot, err error) {
	err = o.do("snapshot", func(c redis.UniversalClient) (err error) {
		raw, err = redisscript.Load(ctx, reader(c, o.base), o.keys)
		return err
	})
	return raw, err
}

// Events reads the fleet's log of changes.
func (o *Operator) Events(ctx context.Context) (list []message.Event, err error) {
	err = o.do("events", func(c redis.UniversalClient) (err error) {
		list, err = redisscript.Events(ctx, c, o.keys)
		return err
	})
	return list, err
}

// SetCapacity sets the capacity for the whole fleet; 0 withdraws it.
func (o *Operator) SetCapacity(ctx context.Context, n int, by string) error {
	return o.do("set capacity", func(c redis.UniversalClient) error {
		_, err := redisscript.SetCapacity(ctx, c, o.keys, o.expected(time.Now()), n, by)
		return err
	})
}

// Pause pauses grants for a time, or until they are resumed if span is below zero.
func (o *Operator) Pause(
	ctx context.Context, span time.Duration, drain bool, by, reason string,
) error {
	return o.do("pause", func(c redis.UniversalClient) error {
		_, err := o.run(func(expected int64) (redisscript.Counted, error) {
			return redisscript.PauseGrants(ctx, c, o.keys, expected, span, drain, by, reason)
		})
		return err
	})
}

// Resume ends a pause.
func (o *Operator) Resume(ctx context.Context, by string) error {
	return o.do("resume", func(c redis.UniversalClient) error {
		_, err := o.run(func(expected int64) (redisscript.Counted, error) {
			return redisscript.Resume(ctx, c, o.keys, expected, by)
		})
		return err
	})
}

// Evict recalls what a session holds, or revokes it. It returns how many permits those are.
func (o *Operator) Evict(
	ctx context.Context, session string, revoke bool, by, reason string,
) (held int64, err error) {
	err = o.do("evict", func(c redis.UniversalClient) (err error) {
		got, err := o.run(func(expected int64) (redisscript.Counted, error) {
			return redisscript.Evict(ctx, c, o.keys, expected, session, revoke, by, reason)
		})
		held = got.Held
		return err
	})
	return held, err
}

// EvictOn recalls what a session was granted since Evict.
func (o *Operator) EvictOn(ctx context.Context, session string) error {
	return o.do("evict", func(c redis.UniversalClient) error {
		_, err := o.run(func(expected int64) (redisscript.Counted, error) {
			return redisscript.EvictOn(ctx, c, o.keys, expected, session)
		})
		return err
	})
}

// Await calls done every pause, with how many permits are held, until it returns true, fails or ctx
// ends.
func (o *Operator) Await(
	ctx context.Context, pause time.Duration, done func(held int64) (bool, error),
) error {
	var outcome error
	err := withClient(o.client, func(c redis.UniversalClient) error {
		for {
			got, err := o.run(func(expected int64) (redisscript.Counted, error) {
				return redisscript.CountHeld(ctx, c, o.keys, expected)
			})
			if err != nil {
				return err
			}
			var ok bool
			if ok, outcome = done(got.Held); ok || outcome != nil {
				return nil
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				outcome = ctx.Err()
				return nil
			}
		}
	})
	if err != nil {
		return fmt.Errorf("count the permits of %q: %w", o.base, core.Unavailable(err))
	}
	return outcome
}

// List returns the names of the semaphores with that prefix, sorted.
func List(ctx context.Context, client redis.UniversalClient, prefix string) ([]string, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var names []string
	list := func(ctx context.Context, c redis.Cmdable) error {
		found, err := redisscript.List(ctx, c, prefix)
		mu.Lock()
		defer mu.Unlock()
		names = append(names, found...)
		return err
	}
	err := withClient(client, func(c redis.UniversalClient) error {
		if cluster, ok := c.(*redis.ClusterClient); ok {
			return cluster.ForEachMaster(ctx, func(ctx context.Context, one *redis.Client) error {
				return list(ctx, one)
			})
		}
		return list(ctx, c)
	})
	if err != nil {
		return nil, fmt.Errorf("list the semaphores of prefix %q: %w", prefix, core.Unavailable(err))
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
