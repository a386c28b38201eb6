package pgxpool

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/socket"
	"github.com/passbuddy/passbuddy/semaphore"
)

// In the scope PerCheckout an allotment.Slot stands for one checkout, not for a connection: it is
// opened with the turn, bound to the socket while the caller has it, and gone at the return. There
// is never an idle one, so what is free is a spare permit, and goes to the next local caller or
// back to the fleet at once.

// closingFunc returns what is closed when the caller's pool is. It is asked only of a caller that
// waits.
type closingFunc func() <-chan struct{}

// openTurn puts the turn that its caller has under a permit, for the scope PerCheckout. If it
// cannot, the turn is given back. A permit is at hand, unless it was lost since the turn was given.
// One that is lost before its caller has used it is replaced, for as long as the caller may wait.
// The context that is returned carries the end of that wait, where there was one.
func openTurn(ctx context.Context, a *allotment.Allotment, closing closingFunc) (context.Context, *allotment.Slot, error) {
	for {
		c, err := a.OpenNow(), error(nil)
		if c == nil {
			if !isFencing(ctx) {
				ctx = a.Bounded(ctx, closing())
			}
			c, err = a.OpenWithin(ctx)
		}
		if err != nil {
			a.Exit()
			return ctx, nil, err
		}
		if c.CheckOut() {
			return ctx, c, nil
		}
		c.Gone()
		a.Exit()
		if ctx, err = enterAgain(ctx, a, closing); err != nil {
			return ctx, nil, err
		}
	}
}

// enterAgain takes another turn for a checkout whose permit was lost before it was of use.
func enterAgain(ctx context.Context, a *allotment.Allotment, closing closingFunc) (context.Context, error) {
	if !isFencing(ctx) {
		ctx = a.Bounded(ctx, closing())
		if ctx.Err() == nil && !a.Overdue(ctx) {
			_, err := a.Enter(ctx, false)
			return ctx, err
		}
	}
	return ctx, fmt.Errorf("passbuddy: during the checkout: %w", semaphore.ErrLost)
}

// turn is the context of a checkout that has its permit.
type turn struct {
	context.Context
	c *allotment.Slot
}

// bindTurn puts a turn that was just taken under a permit.
func (p *pool) bindTurn(ctx context.Context, pool *pgxpool.Pool) context.Context {
	ctx, c, err := openTurn(ctx, p.allot, func() <-chan struct{} { return p.closingOf(pool) })
	if err != nil {
		return &refused{ctx, asClosed(err, pool)}
	}
	return &turn{ctx, c}
}

// endTurn binds the permit to the connection that the caller got, or gives it back.
func (p *pool) endTurn(ctx context.Context, data pgxpool.TraceAcquireEndData) {
	t, ok := ctx.(*turn)
	switch {
	case !ok: // refused
	case data.Err != nil:
		t.c.Gone()
	default:
		if l := linkOf(data.Conn); !l.Bind(t.c) {
			go l.AbortFor(semaphore.ErrLost) // lost after PrepareConn
		}
	}
}

// prepareTurn takes another permit for a checkout whose lease was lost while it waited for the
// connection, which nobody has used yet. AcquireAllIdle comes without a turn, and is not counted.
func (p *pool) prepareTurn(ctx context.Context, l *socket.Link) (bool, error) {
	if l.Closed() {
		return false, nil
	}
	t, ok := ctx.(*turn)
	if !ok || t.c.Usable() {
		return true, nil
	}
	closing := func() <-chan struct{} {
		if known := p.known.Load(); known != nil {
			return p.closingOf(known)
		}
		return nil
	}
	for !t.c.Usable() {
		again, err := enterAgain(t.Context, p.allot, closing)
		if err != nil {
			return true, err
		}
		again, c, err := openTurn(again, p.allot, closing)
		if err != nil {
			return true, err
		}
		t.c.Gone()
		t.Context, t.c = again, c
	}
	return true, nil
}

// endCheckout gives the permit back, if the connection goes back in good order. If it does not, its
// backend may still run a query: then the permit ends with the socket.
func endCheckout(l *socket.Link, ok bool) bool {
	if !ok {
		return false
	}
	if c := l.Unbind(); c != nil {
		c.Gone()
	}
	return !l.Closed()
}
