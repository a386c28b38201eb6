package pgxpool

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Connections that are opened by hand with the configuration of a pool, by pgx.ConnectConfig or
// stdlib.OpenDB(*pool.Config().ConnConfig), count as one checkout of the pool for as long as they
// live: as a hijacked connection does. The pool cannot take them back while they are idle.
//
// Such a configuration has our tracer. The pool's own attempts to connect have another, which
// beforeConnect sets. So an attempt that reaches the tracer's TraceConnectStart is not the pool's.

// byHand is such an attempt. It is an attempt of the pool's for all that concerns the socket. Its
// turn and its permit are taken before the connect begins, whose timeout is not for that wait.
type byHand struct {
	connectAttempt
	p       *pool
	c       *allotment.Slot // a permit that no dial has used yet
	err     error           // why there is none
	turn    bool
	restore func() // what is shown of the configuration is as it was
}

var _ pgx.ConnectTracer = (*tracer)(nil)

// TraceConnectStart puts a connection that is opened by hand under a permit.
func (t *tracer) TraceConnectStart(ctx context.Context, data pgx.TraceConnectStartData) context.Context {
	cfg := data.ConnConfig // pgx's own copy, for this connection
	h := &byHand{p: t.pool, connectAttempt: connectAttempt{Tracer: noTracer, user: t.user.tracer, config: cfg}}
	cfg.Tracer = h.user
	if h.user != nil {
		h.Tracer = multitracer.New(h.user)
	}
	if user, ok := h.user.(pgx.ConnectTracer); ok {
		ctx = user.TraceConnectStart(ctx, data)
	}
	bounded := t.allot.Bounded(ctx, nil)
	if h.enter(bounded); h.err == nil {
		h.c, h.err = h.permit(bounded)
	}
	h.dialer.Dial, h.dialer.Open = cfg.DialFunc, h.open
	cfg.DialFunc = h.dialer.DialContext
	after := cfg.AfterConnect
	h.restore = func() { cfg.AfterConnect = after }
	cfg.AfterConnect = func(ctx context.Context, pc *pgconn.PgConn) error {
		if err := h.connected(ctx, pc); err != nil {
			return err
		}
		if after == nil {
			return nil
		}
		return after(ctx, pc)
	}
	return context.WithValue(h.dialer.Begin(bounded), byHandKey{}, h)
}

type byHandKey struct{}

// TraceConnectEnd ends what TraceConnectStart began.
func (t *tracer) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	h, ok := ctx.Value(byHandKey{}).(*byHand)
	if !ok {
		return
	}
	h.restore()
	h.endDials(data, t)
	if failed(data) {
		if h.c != nil {
			h.c.Gone()
		}
		if h.turn {
			t.allot.Exit()
		}
	}
	if user, ok := h.user.(pgx.ConnectTracer); ok {
		user.TraceConnectEnd(ctx, data)
	}
}

// enter waits for a turn.
func (h *byHand) enter(ctx context.Context) {
	if !h.p.allot.TryEnter() {
		h.p.watch()
		if _, h.err = h.p.allot.EnterPool(ctx); h.err != nil {
			return
		}
	}
	h.turn = true
}

func (h *byHand) permit(ctx context.Context) (*allotment.Slot, error) {
	if c := h.p.allot.OpenNow(); c != nil {
		return c, nil
	}
	return h.p.allot.OpenWithin(ctx)
}

// open is the dialer's. A second dial of the same attempt (another host, or without TLS) needs
// another permit, which the first has left.
func (h *byHand) open(ctx context.Context) (c *allotment.Slot, err error) {
	switch {
	case h.err != nil:
		return nil, h.err
	case h.c != nil:
		c, h.c = h.c, nil
		return c, nil
	}
	return h.permit(ctx)
}

// connected ties the turn to the connection. It is the first that sees it.
func (h *byHand) connected(ctx context.Context, pc *pgconn.PgConn) error {
	l := h.dialer.Last()
	if l == nil || l.Slot() == nil {
		return errUntracked
	}
	c := l.Slot()
	if h.p.fence {
		if err := h.p.recordBackend(ctx, c, pc); err != nil {
			return err
		}
	}
	if !c.CheckOut() {
		return fmt.Errorf("passbuddy: while connecting: %w", semaphore.ErrLost)
	}
	h.turn = false
	return nil
}
