package allotment

import (
	"context"
	"errors"
	"fmt"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
)

// This file is Options.Fence, for pools that record in Redis which Postgres backend each connection
// is. Should this process be stopped past its leases, others can end its backends; should it be
// killed, they can see that they are gone. Such a pool does both for others in turn.

// recorder is an [Engine] that keeps backends. [*engine.Pool] is one.
type recorder interface {
	RecordBackend(p *engine.Permit, tag string) record
	ClearBackend(p *engine.Permit) record
}

var _ recorder = (*engine.Pool)(nil)

// record is the second half of a record, which asks Redis.
type record = func(context.Context) error

// BackendEnder is a [Pool] that can end backends it did not open.
type BackendEnder interface {
	Pool
	// EndBackends is engine.Reaper's, with an urgent ctx (see Enter).
	EndBackends(ctx context.Context, backends []Backend) (gone []bool)
	// BackendsGone is engine.Reaper's, likewise.
	BackendsGone(ctx context.Context, backends []Backend) (gone []bool)
}

var _ engine.Reaper = (*Allotment)(nil)

// RecordBackend records the backend of s, which must not be handed out before, and must be closed
// if this fails. Unlike the other methods it asks Redis.
//
// Meanwhile the lease can be lost and s closed by Abort. s can even be gone, and its permit given
// back, or under another connection. engine.Pool.RecordBackend says why that is well. It asks that
// connections say what they are in the order in which they have the permit. So the first half is
// done under the lock, while the permit is certainly that of s.
func (s *Slot) RecordBackend(ctx context.Context, b Backend) error {
	record, err := s.underPermit(func(e recorder) record {
		s.recorded = &b
		return e.RecordBackend(s.permit, b.Tag())
	})
	if err != nil {
		return fmt.Errorf("passbuddy: while connecting: %w", err)
	}
	if err := record(ctx); err != nil {
		return fmt.Errorf("passbuddy: recording the backend of a new connection: %w", err)
	}
	return nil
}

// vacate makes sure, before the connection of s is dialled, that Redis knows of no other backend
// under its permit: see engine.Pool.ClearBackend. It asks Redis only if the permit has covered a
// backend before. It takes the lock.
func (s *Slot) vacate(ctx context.Context) error {
	if !s.a.opts.Fence {
		return nil
	}
	record, err := s.underPermit(func(e recorder) record { return e.ClearBackend(s.permit) })
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
func (s *Slot) underPermit(first func(recorder) record) (record, error) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	e, ok := s.a.engine.(recorder)
	switch {
	case !ok:
		return nil, errors.New("bug: this engine keeps no backends")
	case s.permit == nil:
		return nil, core.ErrLost
	}
	return first(e), nil
}

// BackendsGone passes on what the engine asks for, if the pool can do it.
func (a *Allotment) BackendsGone(ctx context.Context, tags []string) []bool {
	if e, ok := a.pool.(BackendEnder); ok {
		return askOf(tags, func(b []Backend) []bool { return e.BackendsGone(a.urgent(ctx), b) })
	}
	return nil
}

// EndBackends passes on what the engine asks for, if the pool can do it.
func (a *Allotment) EndBackends(ctx context.Context, tags []string) []bool {
	if e, ok := a.pool.(BackendEnder); ok {
		return askOf(tags, func(b []Backend) []bool { return e.EndBackends(a.urgent(ctx), b) })
	}
	return nil
}

// urgentKey marks the context of a checkout that ends backends, or looks for them: it goes to the
// head of the local queue. Its turn takes milliseconds, and frees permits for everybody.
type urgentKey struct{ a *Allotment }

func (a *Allotment) urgent(ctx context.Context) context.Context {
	return context.WithValue(ctx, urgentKey{a}, true)
}

func (a *Allotment) isUrgent(ctx context.Context) bool { return ctx.Value(urgentKey{a}) != nil }
