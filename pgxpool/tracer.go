package pgxpool

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// tracer is where a checkout waits and ends. Everything else goes to the user's tracer.
//
// The pool alone has it: beforeConnect gives each connection the user's own tracer, so that queries
// pay nothing.
type tracer struct {
	*multitracer.Tracer
	*pool
	plain   bool                  // PerConnection, and the user traces no acquires
	acquire pgxpool.AcquireTracer // the user's, or nil
	release pgxpool.ReleaseTracer // the user's, or nil
}

var (
	_ pgx.QueryTracer       = (*tracer)(nil)
	_ pgxpool.AcquireTracer = (*tracer)(nil)
	_ pgxpool.ReleaseTracer = (*tracer)(nil)
)

// TraceAcquireStart waits for a turn. A warm checkout gets the very same ctx back.
//
// It is the door of a checkout that has to wait: AcquireTimeout becomes a deadline here, and
// travels in the context to every later wait.
func (t *tracer) TraceAcquireStart(
	ctx context.Context, pool *pgxpool.Pool, data pgxpool.TraceAcquireStartData,
) context.Context {
	c := t.checkoutOf(ctx)
	if c.reclaims() {
		return ctx
	}
	if t.known.Load() != pool {
		t.meet(pool)
	}
	if t.acquire != nil && !c.asksServer() {
		ctx = t.acquire.TraceAcquireStart(ctx, pool, data)
	}
	if !t.allot.TryEnter() {
		t.watch()
		closing := t.closingOf(pool)
		if allotment.IsClosed(closing) {
			return t.refuse(ctx, errClosedPool(pool))
		}
		if !c.asksServer() {
			ctx = t.allot.Bounded(ctx, closing)
		}
		warm, err := t.allot.EnterPool(ctx)
		if err != nil {
			return t.refuse(ctx, asClosed(err, pool))
		}
		switch {
		case t.opts.PerCheckout: // a checkout's turn comes with a permit, not with a connection
		case warm:
			ctx = t.arrive(ctx, pool)
		default:
			ctx = t.withCheckout(ctx) // for endWait
		}
	}
	if t.opts.PerCheckout {
		return t.bindTurn(ctx, pool)
	}
	return ctx
}

// TraceAcquireEnd gives the turn back if the checkout failed. Otherwise prepareConn has tied it to
// the connection, and if t is plain, nothing is left to do.
func (t *tracer) TraceAcquireEnd(
	ctx context.Context, pool *pgxpool.Pool, data pgxpool.TraceAcquireEndData,
) {
	c := t.checkoutOf(ctx)
	c.endArrival()
	c.endWait()
	if t.plain && data.Err == nil || c.reclaims() {
		return
	}
	if t.acquire != nil && !c.asksServer() {
		t.acquire.TraceAcquireEnd(ctx, pool, data)
	}
	switch {
	case t.opts.PerCheckout:
		c.endTurn(data)
	case data.Err != nil && (c == nil || c.err == nil):
		t.allot.Exit()
	}
}

// TraceRelease gives back the turn. It runs before pgx looks at the connection, so one that is
// closed here is destroyed by the pool.
func (t *tracer) TraceRelease(pool *pgxpool.Pool, data pgxpool.TraceReleaseData) {
	if t.release != nil {
		t.release.TraceRelease(pool, data)
	}
	ok := healthy(data.Conn)
	if ok && t.user.AfterRelease != nil {
		return // not idle before the user's hook is done with it: see afterRelease
	}
	if !ok && taken(data.Conn) {
		return // the checkout ends with the socket
	}
	if t.plain { // giveBack, inlined
		if slot := slotOf(data.Conn); slot != nil && slot.Return(ok) {
			return
		}
	} else if t.giveBack(data.Conn, ok) {
		return
	}
	if ok {
		closeConn(data.Conn)
	}
}

// giveBack ends a checkout and reports whether conn stays in the pool.
func (p *pool) giveBack(conn *pgx.Conn, ok bool) bool {
	if p.opts.PerCheckout {
		return endCheckout(linkOf(conn), ok)
	}
	slot := slotOf(conn)
	return slot != nil && slot.Return(ok)
}

// closeTimeout bounds the write of a Terminate.
const closeTimeout = time.Second

// closeConn closes a connection that its pool will then destroy. It does not wait for the server.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx)
}

// afterRelease is set only where the user has such a hook. A connection that does not stay is
// closed, and so leaves the allotment, be it because the connection has expired, which pgx decides
// before the hook, or because the hook refuses it.
func (p *pool) afterRelease(conn *pgx.Conn) bool {
	if !p.user.AfterRelease(conn) {
		return false
	}
	return p.giveBack(conn, healthy(conn))
}

// prepareConn ties the turn to the connection, and refuses one that was closed in place while it
// was idle. It is the last to decide: a connection that it lets pass is handed out, and from here
// on only an abort closes it under its user.
func (p *pool) prepareConn(ctx context.Context, conn *pgx.Conn) (bool, error) {
	c := p.checkoutOf(ctx)
	if c.reclaims() {
		return c.reclaim(conn)
	}
	if p.user.PrepareConn != nil && !c.asksServer() {
		if ok, err := p.user.PrepareConn(ctx, conn); !ok || err != nil {
			return ok, err
		}
	}
	if p.opts.PerCheckout {
		return p.prepareTurn(c, linkOf(conn))
	}
	slot := slotOf(conn)
	return slot != nil && slot.CheckOut(), nil
}

// shouldPing spares the search for idle connections a round trip to the server. A checkout that
// asks the server needs no ping either: its own query follows, and has a bound.
func (p *pool) shouldPing(ctx context.Context, params pgxpool.ShouldPingParams) bool {
	if p.user.ShouldPing == nil && params.IdleDuration <= pingAfter {
		return false
	}
	if c := p.checkoutOf(ctx); c.reclaims() || c.asksServer() {
		return false
	}
	return p.user.ShouldPing == nil || p.user.ShouldPing(ctx, params)
}
