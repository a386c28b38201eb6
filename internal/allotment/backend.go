package allotment

import (
	"context"
	"fmt"

	"github.com/passbuddy/passbuddy/internal/core"
)

// This file is Options.Fence, for pools that record in Redis which Postgres backend each connection
// is. Should this process be stopped past its leases, others can end its backends; should it be
// killed, they can see that they are gone. Such a pool does both for others in turn.

// record is the second half of a record, which asks Redis.
type record = func(context.Context) error

// BackendEnder is a [Pool] that can end backends it did not open.
type BackendEnder interface {
	Pool
	// EndBackends is engine.Listener's, with an urgent ctx (see Enter).
	EndBackends(ctx context.Context, backends []Backend) (gone []bool)
	// BackendsGone is engine.Listener's, likewise.
	BackendsGone(ctx context.Context, backends []Backend) (gone []bool)
}

// RecordBackend records the backend of s, which must not be handed out before, and must be closed
// if this fails. Unlike the other methods it asks Redis.
//
// Meanwhile the lease can be lost and s closed by Abort. s can even be gone, and its permit given
// back, or under another connection. engine.Pool.RecordBackend says why that is well. It asks that
// connections say what they are in the order in which they have the permit. So the first half is
// done under the lock, while the permit is certainly that of s.
func (s *Slot) RecordBackend(ctx context.Context, b Backend) error {
	record, err := s.underPermit(func() record {
		s.recorded = &b
		return s.a.engine.RecordBackend(s.permit, b.Tag())
	})
	if err != nil {
		return fmt.Errorf("passbuddy: while connecting: %w", err)
	}
	if err := record(ctx); err != nil {
		return fmt.Errorf("passbuddy: recording the backend of a new connection: %w", err)
	}
	return nil
}

// clearRecord makes sure, before the connection of s is dialled, that Redis knows of no other
// backend under its permit: see engine.Pool.ClearBackend. It asks Redis only if the permit has
// covered a backend before. It takes the lock.
func (s *Slot) clearRecord(ctx context.Context) error {
	if !s.a.opts.Fence {
		return nil
	}
	record, err := s.underPermit(func() record { return s.a.engine.ClearBackend(s.permit) })
	if err == nil && record != nil {
		err = record(ctx)
	}
	if err != nil {
		return fmt.Errorf("passbuddy: before a new connection: %w", err)
	}
	return nil
}

// underPermit is the first half of a record, while the permit is certainly that of s. It takes the
// lock.
func (s *Slot) underPermit(first func() record) (record, error) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.permit == nil {
		return nil, core.ErrLost
	}
	return first(), nil
}

// BackendsGone passes on what the engine asks for.
func (a *Allotment) BackendsGone(ctx context.Context, tags []string) []bool {
	return a.askPool(ctx, tags, BackendEnder.BackendsGone)
}

// EndBackends passes on what the engine asks for.
func (a *Allotment) EndBackends(ctx context.Context, tags []string) []bool {
	return a.askPool(ctx, tags, BackendEnder.EndBackends)
}

// askPool asks the pool about the backends of those tags that are well formed. The others are not
// gone. It returns nil if the pool cannot ask Postgres.
func (a *Allotment) askPool(
	ctx context.Context, tags []string,
	ask func(BackendEnder, context.Context, []Backend) (gone []bool),
) []bool {
	pool, ok := a.pool.(BackendEnder)
	if !ok {
		return nil
	}
	var backends []Backend
	var at []int
	for i, tag := range tags {
		if b, ok := parseTag(tag); ok {
			backends, at = append(backends, b), append(at, i)
		}
	}
	out := make([]bool, len(tags))
	if len(backends) > 0 {
		for i, gone := range ask(pool, a.urgent(ctx), backends) {
			out[at[i]] = gone
		}
	}
	return out
}

// urgentKey marks the context of a checkout that ends backends, or looks for them: it goes to the
// head of the local queue. Its turn takes milliseconds, and frees permits for everybody.
type urgentKey struct{ a *Allotment }

func (a *Allotment) urgent(ctx context.Context) context.Context {
	return context.WithValue(ctx, urgentKey{a}, true)
}

func (a *Allotment) isUrgent(ctx context.Context) bool { return ctx.Value(urgentKey{a}) != nil }
