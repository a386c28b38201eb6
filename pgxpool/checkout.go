package pgxpool

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/socket"
	"github.com/passbuddy/passbuddy/semaphore"
)

// In the scope PerCheckout an allotment.Conn stands for one checkout, not for a connection: it is opened with
// the turn, bound to the socket while the caller has it, and gone at the return. There is never an idle one, so what
// is free is a spare permit, and goes to the next local caller or back to the fleet at once.

// openTurn puts the turn that its caller has under a permit, for the scope PerCheckout. If it cannot, the turn is given back. A permit
// is at hand, unless it was lost since the turn was given.
func openTurn(ctx context.Context, a *allotment.Allotment) (*allotment.Conn, error) {
	c, err := a.OpenNow(), error(nil)
	if c == nil {
		c, err = a.OpenWithin(ctx)
	}
	return takeTurn(a, c, err)
}

// takeTurn is openTurn with what the allotment said.
func takeTurn(a *allotment.Allotment, c *allotment.Conn, err error) (*allotment.Conn, error) {
	if err != nil {
		a.Exit()
		return nil, err
	}
	if !c.CheckOut() {
		c.Gone()
		a.Exit()
		return nil, fmt.Errorf("passbuddy: during the checkout: %w", semaphore.ErrLost)
	}
	return c, nil
}

// turn is the context of a checkout that has its permit.
type turn struct {
	context.Context
	c *allotment.Conn
}

// bindTurn puts a turn that was just taken under a permit.
func (p *pool) bindTurn(ctx context.Context, pool *pgxpool.Pool) context.Context {
	c, err := p.allot.OpenNow(), error(nil)
	if c == nil {
		c, err = p.allot.OpenWithin(p.allot.Bounded(ctx, p.closingOf(pool)))
	}
	if c, err = takeTurn(p.allot, c, err); err != nil {
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
			go l.FenceFor(semaphore.ErrLost) // lost after PrepareConn
		}
	}
}

// prepareTurn refuses a checkout whose lease was lost while it waited for the connection. AcquireAllIdle comes
// without a turn, and is not counted.
func prepareTurn(ctx context.Context, l *socket.Link) (bool, error) {
	if l.Closed() {
		return false, nil
	}
	if t, ok := ctx.(*turn); ok && !t.c.Usable() {
		return true, fmt.Errorf("passbuddy: during the checkout: %w", semaphore.ErrLost)
	}
	return true, nil
}

// endCheckout gives the permit back, if the connection goes back in good order. If it does not, its backend may
// still run a query: then the permit ends with the socket.
func endCheckout(l *socket.Link, ok bool) bool {
	if !ok {
		return false
	}
	if c := l.Unbind(); c != nil {
		c.Gone()
	}
	return !l.Closed()
}
