package allotment

import (
	"context"
	"errors"
	"fmt"

	"github.com/passbuddy/passbuddy/semaphore"
)

// This file is Options.Fence, for pools that record in Redis which Postgres backend each connection
// is. Should this process be stopped past its leases, others can end its backends; should it be
// killed, they can see that they are gone. Such a pool does both for others in turn.

// recorder is an [Engine] that keeps backends. [*semaphore.Share] is one.
type recorder interface {
	Cover(p *semaphore.Permit, b semaphore.Backend) record
	Vacate(p *semaphore.Permit) record
}

// record is the second half of a record, which asks Redis.
type record = func(context.Context) error

// BackendEnder is a [Pool] that can end backends it did not open.
type BackendEnder interface {
	Pool
	// EndBackends is semaphore.BackendEnder's, with an urgent ctx (see Enter).
	EndBackends(ctx context.Context, backends []semaphore.Backend) (gone []bool)
	// BackendsGone is semaphore.BackendEnder's, likewise.
	BackendsGone(ctx context.Context, backends []semaphore.Backend) (gone []bool)
}

var _ semaphore.BackendEnder = (*Allotment)(nil)

// RecordBackend records the backend of s, which must not be handed out before, and must be closed
// if this fails. Unlike the other methods it asks Redis.
//
// Meanwhile the lease can be lost and s closed by Abort. s can even be gone, and its permit given
// back, or under another connection. semaphore.Share.Cover says why that is well. It asks that
// connections say what they are in the order in which they have the permit. So the first half is
// done under the lock, while the permit is certainly that of s.
func (s *Slot) RecordBackend(ctx context.Context, b semaphore.Backend) error {
	record, err := s.underPermit(func(e recorder) record {
		s.recorded = &b
		return e.Cover(s.permit, b)
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
// under its permit: see semaphore.Share.Vacate. It asks Redis only if the permit has covered a
// backend before. It takes the lock.
func (s *Slot) vacate(ctx context.Context) error {
	if !s.a.opts.Fence {
		return nil
	}
	record, err := s.underPermit(func(e recorder) record { return e.Vacate(s.permit) })
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
		return nil, semaphore.ErrLost
	}
	return first(e), nil
}

// BackendsGone passes on what the engine asks for, if the pool can do it.
func (a *Allotment) BackendsGone(ctx context.Context, backends []semaphore.Backend) []bool {
	if e, ok := a.pool.(BackendEnder); ok {
		return e.BackendsGone(a.urgent(ctx), backends)
	}
	return nil
}

// EndBackends passes on what the engine asks for, if the pool can do it.
func (a *Allotment) EndBackends(ctx context.Context, backends []semaphore.Backend) []bool {
	if e, ok := a.pool.(BackendEnder); ok {
		return e.EndBackends(a.urgent(ctx), backends)
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
