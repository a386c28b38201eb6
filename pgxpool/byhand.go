package pgxpool

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Users can open connections by hand with the configuration of a pool, by pgx.ConnectConfig or
// stdlib.OpenDB(*pool.Config().ConnConfig). Each counts as one checkout of the pool for as long as
// it lives, as a hijacked connection does. The pool cannot take it back while it is idle.
//
// Such a configuration has our tracer. The pool's own attempts to connect have another, which
// beforeConnect sets. So an attempt that reaches the tracer's TraceConnectStart is not the pool's.

// byHand is such an attempt. For all that concerns the socket, it is an attempt of the pool's. Its
// turn and its permit are taken before the connect begins: the connect's timeout is not for that
// wait.
type byHand struct {
	connectAttempt
	slot    *allotment.Slot // has a permit, and no dial has used it yet
	err     error           // why there is none
	turn    bool
	restore func() // what is shown of the configuration is as it was
}

var _ pgx.ConnectTracer = (*tracer)(nil)

// TraceConnectStart puts a connection that is opened by hand under a permit.
func (t *tracer) TraceConnectStart(
	ctx context.Context, data pgx.TraceConnectStartData,
) context.Context {
	cfg := data.ConnConfig // pgx's own copy, for this connection
	h := new(byHand)
	h.init(t.pool, t.userTracer)
	cfg.Tracer, h.config = h.user, cfg
	if user, ok := h.user.(pgx.ConnectTracer); ok {
		ctx = user.TraceConnectStart(ctx, data)
	}
	h.ctx = t.allot.Bounded(ctx, nil)
	if h.enter(); h.err == nil {
		h.slot, h.err = h.permit(h.ctx)
	}
	t.allot.EndWait(h.ctx)
	if h.err == nil {
		h.began = time.Now()
	}
	h.dialer.Dial, h.dialer.Open = cfg.DialFunc, h.open
	cfg.DialFunc = h.dialer.DialContext
	after := cfg.AfterConnect
	h.restore = func() { cfg.AfterConnect = after }
	cfg.AfterConnect = func(ctx context.Context, pc *pgconn.PgConn) error {
		if err := h.connected(pc); err != nil {
			return err
		}
		if after == nil {
			return nil
		}
		return after(ctx, pc)
	}
	return &checkout{Context: h.dialer.Begin(h.ctx), pool: t.pool, byHand: h}
}

// TraceConnectEnd ends what TraceConnectStart began.
func (t *tracer) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	c := t.checkoutAbove(ctx)
	if c == nil || c.byHand == nil {
		return
	}
	h := c.byHand
	h.restore()
	h.endDials(data)
	if !failed(data) || data.Err != nil {
		h.countOpen(data.Err)
	}
	if failed(data) {
		if h.slot != nil {
			h.slot.Gone()
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
func (h *byHand) enter() {
	if !h.p.allot.TryEnter() {
		h.p.watch()
		if _, h.err = h.p.allot.EnterPool(h.ctx); h.err != nil {
			return
		}
	}
	h.turn = true
}

func (h *byHand) permit(ctx context.Context) (*allotment.Slot, error) {
	if slot := h.p.allot.OpenNow(); slot != nil {
		return slot, nil
	}
	return h.p.allot.OpenWithin(ctx)
}

// open is the dialer's. A second dial of the same attempt (another host, or without TLS) needs
// another permit, which the first has left.
func (h *byHand) open(ctx context.Context) (slot *allotment.Slot, err error) {
	switch {
	case h.err != nil:
		return nil, h.err
	case h.slot != nil:
		slot, h.slot = h.slot, nil
		return slot, nil
	}
	return h.permit(ctx)
}

// connected ties the turn to the connection. It is the first that sees it.
func (h *byHand) connected(pc *pgconn.PgConn) error {
	l := h.dialer.Last()
	if l == nil || l.Slot() == nil {
		return errUntracked
	}
	slot := l.Slot()
	if h.p.opts.Fence {
		if err := h.recordBackend(slot, pc); err != nil {
			return err
		}
	}
	if !slot.CheckOut() {
		return fmt.Errorf("passbuddy: while connecting: %w", semaphore.ErrLost)
	}
	h.turn = false
	slot.OpenedByHand()
	return nil
}
