package allotment

import (
	"context"
	"errors"
	"fmt"
	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
)

// This file is for pools that say which Postgres backend each connection is, so that others can end it should this process be
// stopped past its leases, and can see that it is gone should this process be killed; and that do
// both for others in turn.

// marker is a [Fleet] that keeps backends. [*engine.Pool] is one.
type marker interface {
	Cover(p *engine.Permit, tag string) (record func(context.Context) error)
	Vacate(p *engine.Permit) (record func(context.Context) error)
}

// BackendEnder is a [Pool] that can end backends it did not open.
type BackendEnder interface {
	Pool
	// EndBackends is engine.Reaper's, with an urgent ctx (see Enter).
	EndBackends(ctx context.Context, backends []Backend) (gone []bool)
	// BackendsGone is engine.Reaper's, likewise.
	BackendsGone(ctx context.Context, backends []Backend) (gone []bool)
}

var _ engine.Reaper = (*Allotment)(nil)

// Mark records the backend of c, which must not be handed out before, and must be closed if this fails. Unlike the other methods it asks Redis.
//
// Meanwhile the lease can be lost and c closed by Fence; c can even be gone, and its permit given back, or under another connection:
// engine.Pool.Cover says why that is well. What it asks for is that connections say what they are in the order in which they have the permit. So
// the first half is done under the lock, while the permit is certainly c's.
func (c *Conn) Mark(ctx context.Context, b Backend) error {
	record, err := c.cover(b)
	if err != nil {
		return err
	}
	if err := record(ctx); err != nil {
		return fmt.Errorf("passbuddy: recording the backend of a new connection: %w", err)
	}
	return nil
}

func (c *Conn) cover(b Backend) (record func(context.Context) error, err error) {
	a := c.a
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.fleet.(marker)
	switch {
	case !ok:
		return nil, errors.New("passbuddy: bug: this fleet keeps no backends")
	case c.permit == nil:
		return nil, fmt.Errorf("passbuddy: while connecting: %w", core.ErrLost)
	}
	c.recorded = &b
	return m.Cover(c.permit, b.Tag()), nil
}

// vacate makes sure, before c is dialled, that Redis knows of no other backend under its permit:
// see engine.Pool.Vacate. It asks Redis only if the permit has covered a backend before. The
// first half is done under the lock, while the permit is certainly c's.
func (c *Conn) vacate(ctx context.Context) error {
	a := c.a
	if !a.opts.Fence {
		return nil
	}
	record, err := c.vacating()
	if err == nil && record != nil {
		err = record(ctx)
	}
	if err != nil {
		return fmt.Errorf("passbuddy: before a new connection: %w", err)
	}
	return nil
}

func (c *Conn) vacating() (record func(context.Context) error, err error) {
	a := c.a
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.fleet.(marker)
	switch {
	case !ok:
		return nil, nil
	case c.permit == nil:
		return nil, core.ErrLost
	}
	return m.Vacate(c.permit), nil
}

// BackendsGone passes on what the fleet asks for, if the pool can do it.
func (a *Allotment) BackendsGone(ctx context.Context, tags []string) []bool {
	if e, ok := a.pool.(BackendEnder); ok {
		return askOf(tags, func(b []Backend) []bool { return e.BackendsGone(context.WithValue(ctx, urgentKey{a}, true), b) })
	}
	return nil
}

// EndBackends passes on what the fleet asks for, if the pool can do it.
func (a *Allotment) EndBackends(ctx context.Context, tags []string) []bool {
	if e, ok := a.pool.(BackendEnder); ok {
		return askOf(tags, func(b []Backend) []bool { return e.EndBackends(context.WithValue(ctx, urgentKey{a}, true), b) })
	}
	return nil
}

// urgentKey marks the context of a checkout that ends backends, or looks for them: it goes to the
// head of the local queue. Its turn takes
// milliseconds, and frees permits for everybody.
type urgentKey struct{ a *Allotment }
