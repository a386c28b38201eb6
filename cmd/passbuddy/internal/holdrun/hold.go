package holdrun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/membership"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A lease is one of the permits that are held: a *semaphore.Permit, or a *engine.Permit.
type lease interface {
	Held() bool
	Lost() <-chan struct{}
}

// hold is a session, and the permits that it holds for the command.
type hold struct {
	sem    *semaphore.Semaphore
	leases []lease
	lost   chan struct{} // closed when one of the leases is lost
	over   chan struct{} // closed by release
}

// acquire joins the fleet and acquires the permits. say tells the user something.
func acquire(ctx context.Context, o Options, say func(string, ...any)) (_ *hold, err error) {
	sem, err := semaphore.Open(ctx, o.Target.RedisURL, semaphore.Config{
		Prefix: o.Target.Prefix, Name: o.Target.Name,
		Capacity: cmp.Or(o.Capacity, membership.Most), TTL: o.TTL,
		MaxAttempts: -1, // the wait has a deadline
		Owner:       o.owner(),
		// It could log only errors of ours, or those that the fleet's members log.
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	h := &hold{sem: sem, lost: make(chan struct{}), over: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = sem.Close()
		}
	}()
	if err := h.checkCapacity(ctx, o, say); err != nil {
		return nil, err
	}
	if err := h.wait(ctx, o); err != nil {
		return nil, err
	}
	h.watch()
	return h, nil
}

// checkCapacity makes sure that some capacity is in force before anything is asked for.
func (h *hold) checkCapacity(ctx context.Context, o Options, say func(string, ...any)) error {
	now, err := h.sem.Snapshot(ctx)
	if err != nil {
		return err
	}
	if o.Capacity == 0 {
		if membership.InForce(now) == 0 {
			return membership.ErrNoCapacity
		}
		return nil
	}
	if now.OperatorCapacity > 0 {
		return nil
	}
	now.Sessions = slices.DeleteFunc(now.Sessions, func(s semaphore.Session) bool {
		return s.Owner == o.owner() // this one
	})
	if others, _, err := membership.ToDeclare(now); err == nil && others > o.Capacity {
		say("--capacity lowers the fleet's capacity from %d to %d while the command runs", others,
			o.Capacity)
	}
	return nil
}

// wait acquires the permits, and returns once they count under somebody's capacity. Otherwise it
// gives them back, and asks again.
func (h *hold) wait(ctx context.Context, o Options) error {
	if o.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Wait)
		defer cancel()
	}
	for {
		giveBack, err := h.ask(ctx, o)
		if err != nil {
			return explain(err, o)
		}
		if o.Capacity > 0 {
			return nil
		}
		counts, err := h.counts(ctx)
		switch {
		case err != nil || counts:
			return err
		case o.Wait == 0:
			return explain(semaphore.ErrCapacity, o)
		}
		giveBack()
	}
}

const (
	countLooks = 3
	countPause = 20 * time.Millisecond
)

// counts reports whether what was granted counts under somebody's capacity: one is in force, and no
// more than that is held in all.
//
// This session declares none, so while no other session does, everything is granted. That can be
// for an instant only, as when a fleet is replaced. Grants of that instant exceed the capacity of
// the new fleet, until enough of them are given back. So one look that finds no more is
// enough. One that finds more may be wrong: a snapshot is read in pages.
func (h *hold) counts(ctx context.Context) (bool, error) {
	for look := range countLooks {
		if look > 0 {
			time.Sleep(countPause)
		}
		now, err := h.sem.Snapshot(ctx)
		if err != nil {
			return false, err
		}
		capacity := membership.InForce(now)
		if capacity == 0 {
			return false, membership.ErrNoCapacity
		}
		if now.Held <= capacity {
			return true, nil
		}
	}
	return false, nil
}

// ask acquires the permits, all or none.
func (h *hold) ask(ctx context.Context, o Options) (giveBack func(), err error) {
	h.leases = nil
	if o.Wait == 0 {
		permits, err := h.sem.Engine(engine.Seam{}).AcquireN(ctx, engine.Try, o.N)
		for _, p := range permits {
			h.leases = append(h.leases, p)
		}
		return nil, err
	}
	permits, err := h.sem.AcquireN(ctx, o.N)
	for _, p := range permits {
		h.leases = append(h.leases, p)
	}
	return func() {
		for _, p := range permits {
			_ = p.Release(ctx) // if Redis does not answer, the next ask says so
		}
	}, err
}

// explain says what was waited for, and for how long.
func explain(err error, o Options) error {
	what := "the permit"
	if o.N > 1 {
		what = fmt.Sprintf("the %d permits", o.N)
	}
	switch {
	case !errors.Is(err, semaphore.ErrCapacity):
		return err
	case o.Wait == 0:
		return fmt.Errorf("%s of %q is not free: %w", what, &o.Target, err)
	}
	return fmt.Errorf("%s of %q did not become free within %v: %w", what, &o.Target, o.Wait, err)
}

// watch closes lost when a lease is lost.
func (h *hold) watch() {
	ended := make(chan struct{}, len(h.leases))
	for _, l := range h.leases {
		lost := l.Lost()
		go func() {
			select {
			case <-lost:
				ended <- struct{}{}
			case <-h.over:
			}
		}()
	}
	go func() {
		select {
		case <-ended:
			close(h.lost)
		case <-h.over:
		}
	}()
}

// held reports whether all leases can be proven now.
func (h *hold) held() bool {
	for _, l := range h.leases {
		if !l.Held() {
			return false
		}
	}
	return true
}

// release gives the permits back after the time that backends may take to end.
func (h *hold) release(linger time.Duration) error {
	time.Sleep(linger)
	close(h.over)
	return h.sem.Close()
}
