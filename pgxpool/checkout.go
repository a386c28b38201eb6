package pgxpool

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/socket"
	"github.com/passbuddy/passbuddy/semaphore"
)

// In the scope PerCheckout an allotment.Slot stands for one checkout, not for a connection. It is
// opened with the turn, bound to the socket while the caller has it, and gone at the return. There
// is never an idle one, so a free permit is a spare one, and goes to the next local caller or back
// to the fleet at once.

// closingFunc returns the channel that is closed when the caller's pool is. It is asked only of a
// caller that waits. A nil closingFunc is for a checkout of ours, which the engine bounds.
type closingFunc func() <-chan struct{}

// openTurn puts the turn that its caller has under a permit, for the scope PerCheckout. If it
// cannot, the turn is given back. A permit is at hand, unless it was lost since the turn was given.
// One that is lost before its caller has used it is replaced, for as long as the caller may wait.
// The context that is returned carries the end of that wait, where there was one.
func openTurn(
	ctx context.Context, a *allotment.Allotment, closing closingFunc,
) (context.Context, *allotment.Slot, error) {
	for {
		slot, err := a.OpenNow(), error(nil)
		if slot == nil {
			if closing != nil {
				ctx = a.Bounded(ctx, closing())
			}
			slot, err = a.OpenWithin(ctx)
		}
		if err != nil {
			a.Exit()
			return ctx, nil, err
		}
		if slot.CheckOut() {
			return ctx, slot, nil
		}
		slot.Gone()
		a.Exit()
		if ctx, err = enterAgain(ctx, a, closing); err != nil {
			return ctx, nil, err
		}
	}
}

// enterAgain takes another turn for a checkout whose permit was lost before it was of use.
func enterAgain(
	ctx context.Context, a *allotment.Allotment, closing closingFunc,
) (context.Context, error) {
	if closing != nil {
		ctx = a.Bounded(ctx, closing())
		if ctx.Err() == nil && !a.Overdue(ctx) {
			_, err := a.Enter(ctx, false)
			return ctx, err
		}
	}
	return ctx, fmt.Errorf("passbuddy: during the checkout: %w", semaphore.ErrLost)
}

// closingFor is the closingFunc of a checkout from pool.
func (p *pool) closingFor(c *checkout, pool *pgxpool.Pool) closingFunc {
	if c.asksServer() {
		return nil
	}
	return func() <-chan struct{} {
		if pool == nil {
			return nil
		}
		return p.closingOf(pool)
	}
}

// bindTurn puts a turn that was just taken under a permit.
func (p *pool) bindTurn(ctx context.Context, pool *pgxpool.Pool) context.Context {
	ctx, slot, err := openTurn(ctx, p.allot, p.closingFor(p.checkoutOf(ctx), pool))
	if err != nil {
		return p.refuse(ctx, asClosed(err, pool))
	}
	c := p.withCheckout(ctx)
	c.slot = slot
	return c
}

// endTurn binds the permit to the connection that the caller got, or gives it back.
func (c *checkout) endTurn(data pgxpool.TraceAcquireEndData) {
	switch {
	case c == nil || c.err != nil: // refused
	case data.Err != nil:
		c.slot.Gone()
	default:
		if l := linkOf(data.Conn); !l.Bind(c.slot) {
			go l.AbortFor(semaphore.ErrLost) // lost after PrepareConn
		}
	}
}

// prepareTurn takes another permit for a checkout whose lease was lost while it waited for the
// connection, which nobody has used yet. AcquireAllIdle comes without a turn, and is not counted: c
// is nil.
func (p *pool) prepareTurn(c *checkout, l *socket.Link) (bool, error) {
	if l.Closed() {
		return false, nil
	}
	if c == nil {
		return true, nil
	}
	for !c.slot.Usable() {
		closing := p.closingFor(c, p.known.Load())
		ctx, err := enterAgain(c.Context, p.allot, closing)
		if err != nil {
			return true, err
		}
		ctx, slot, err := openTurn(ctx, p.allot, closing)
		if err != nil {
			return true, err
		}
		c.slot.Gone()
		c.Context, c.slot = ctx, slot
	}
	return true, nil
}

// endCheckout gives the permit back, if the connection goes back in good order. If it does not, its
// backend may still run a query: then the permit ends with the socket.
func endCheckout(l *socket.Link, ok bool) bool {
	if !ok {
		return false
	}
	if slot := l.Unbind(); slot != nil {
		slot.Gone()
	}
	return !l.Closed()
}
