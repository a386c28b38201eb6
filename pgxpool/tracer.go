package pgxpool

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgxpool"
)

// tracer is where a checkout waits and ends. Everything else goes to the user's tracer.
//
// The pool alone has it: beforeConnect gives each connection the user's own tracer, so that queries
// pay nothing.
type tracer struct {
	*multitracer.Tracer
	*pool
	plain   bool                  // a checkout that succeeds has nothing to end: PerConnection, and the user traces none
	acquire pgxpool.AcquireTracer // the user's, or nil
	release pgxpool.ReleaseTracer // the user's, or nil
}

var (
	_ pgx.QueryTracer       = (*tracer)(nil)
	_ pgxpool.AcquireTracer = (*tracer)(nil)
	_ pgxpool.ReleaseTracer = (*tracer)(nil)
)

// TraceAcquireStart waits for a turn. A warm checkout gets the very same ctx back.
func (t *tracer) TraceAcquireStart(ctx context.Context, pool *pgxpool.Pool, data pgxpool.TraceAcquireStartData) context.Context {
	if _, ok := ctx.(*reclaim); ok {
		return ctx
	}
	if t.known.Load() != pool {
		t.meet(pool)
	}
	if t.acquire != nil && !isFencing(ctx) {
		ctx = t.acquire.TraceAcquireStart(ctx, pool, data)
	}
	if !t.allot.TryEnter() {
		t.watch()
		closing := t.closingOf(pool)
		if isClosed(closing) {
			return &refused{ctx, errClosedPool(pool)}
		}
		if !isFencing(ctx) { // which is told by the context's own type, and bounds itself
			ctx = t.allot.Bounded(ctx, closing)
		}
		warm, err := t.allot.EnterPool(ctx)
		if err != nil {
			return &refused{ctx, asClosed(err, pool)}
		}
		if warm && !t.perCheckout { // a checkout's turn comes with a permit, not with a connection
			ctx = t.arrivals.arrive(ctx, pool)
		}
	}
	if t.perCheckout {
		return t.bindTurn(ctx, pool)
	}
	return ctx
}

// TraceAcquireEnd gives the turn back if the checkout failed. If not, prepareConn has tied it to
// the connection.
func (t *tracer) TraceAcquireEnd(ctx context.Context, pool *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	if a, ok := ctx.(*arrival); ok {
		a.end()
		ctx = a.Context
	}
	if t.plain && data.Err == nil {
		return
	}
	if _, ok := ctx.(*reclaim); ok {
		return
	}
	if t.acquire != nil && !isFencing(ctx) {
		t.acquire.TraceAcquireEnd(ctx, pool, data)
	}
	if t.perCheckout {
		t.endTurn(ctx, data)
		return
	}
	if data.Err != nil {
		if _, ok := ctx.(*refused); !ok {
			t.allot.Exit()
		}
	}
}

// TraceRelease gives back the turn. It runs before pgx looks at the connection, so one that is
// closed here is destroyed by the pool.
func (t *tracer) TraceRelease(pool *pgxpool.Pool, data pgxpool.TraceReleaseData) {
	if t.release != nil {
		t.release.TraceRelease(pool, data)
	}
	ok := healthy(data.Conn)
	if ok && t.user.afterRelease != nil {
		return // not idle before the user's hook is done with it: see afterRelease
	}
	if t.plain { // giveBack, inlined
		if c := slotOf(data.Conn); c != nil && c.Return(ok) {
			return
		}
	} else if t.giveBack(data.Conn, ok) {
		return
	}
	if ok {
		end(data.Conn)
	}
}

// giveBack ends a checkout and reports whether conn stays in the pool.
func (p *pool) giveBack(conn *pgx.Conn, ok bool) bool {
	if p.perCheckout {
		return endCheckout(linkOf(conn), ok)
	}
	c := slotOf(conn)
	return c != nil && c.Return(ok)
}

// endTimeout bounds the write of a Terminate.
const endTimeout = time.Second

// end closes a connection that its pool will then destroy. It does not wait for the server.
func end(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	_ = conn.Close(ctx)
}

// afterRelease is set only where the user has such a hook. A connection that does not stay, because
// pgx has decided so before (it has expired) or by the hook, is closed, and so leaves the
// allotment.
func (p *pool) afterRelease(conn *pgx.Conn) bool {
	if !p.user.afterRelease(conn) {
		return false
	}
	return p.giveBack(conn, healthy(conn))
}

// prepareConn ties the turn to the connection, and refuses one that was closed in place while it
// was idle. It is the last to decide: what it lets pass is handed out, and from here on nobody but
// Abort closes it.
func (p *pool) prepareConn(ctx context.Context, conn *pgx.Conn) (bool, error) {
	if r, ok := ctx.(*reclaim); ok {
		return r.prepare(conn)
	}
	if p.user.prepareConn != nil && !isFencing(ctx) {
		if ok, err := p.user.prepareConn(ctx, conn); !ok || err != nil {
			return ok, err
		}
	}
	if p.perCheckout {
		return p.prepareTurn(ctx, linkOf(conn))
	}
	c := slotOf(conn)
	return c != nil && c.CheckOut(), nil
}

// shouldPing spares the search for idle connections a round trip to the server.
func (p *pool) shouldPing(ctx context.Context, params pgxpool.ShouldPingParams) bool {
	if p.user.shouldPing == nil && params.IdleDuration <= pingAfter {
		return false
	}
	if _, ok := ctx.(*reclaim); ok || isFencing(ctx) { // whose own query follows, and has a bound
		return false
	}
	return p.user.shouldPing == nil || p.user.shouldPing(ctx, params)
}

// refused is the context of a checkout that got no turn: done, with the reason as its error. pgx
// returns that error to the caller before it does anything else.
type refused struct {
	context.Context
	err error
}

func (r *refused) Done() <-chan struct{} { return done }
func (r *refused) Err() error            { return r.err }

var done = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
