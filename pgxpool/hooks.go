package pgxpool

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"weak"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Hooks is the scope [passbuddy.PerCheckout] as plain functions, for those who set the hooks of
// their pgxpool.Config by hand:
//
//	hooks := passpool.NewHooks(sem, passbuddy.Config{})
//	config.PrepareConn = hooks.PrepareConn
//	config.AfterRelease = hooks.AfterRelease
//	config.BeforeClose = hooks.BeforeClose
//
// All three are needed. [Configure] does more; prefer it. The gaps of this way are those of pgx's
// hooks:
//
//   - AfterRelease makes Release asynchronous: a checkout that follows at once can find its
//     connection not back yet, and open another. Expect more connections than with Configure.
//   - A connection that was busy, in a transaction or closed at its release gives its permit back
//     when the pool destroys it. If its query was cancelled, that is before its backend has ended.
//   - A hijacked connection keeps its permit until it is collected as garbage.
//   - A caller waits for its permit with a connection of the pool already in its hands. With
//     MaxConns callers waiting, others wait for them.
//   - AcquireAllIdle runs PrepareConn for each connection, and so waits for a permit for each.
//   - A caller that waits in PrepareConn does not learn that its pool was closed, and Close waits
//     for it.
//   - An operation whose lease is lost fails with the error of a closed socket.
type Hooks struct {
	allot *allotment.Allotment
	err   error
}

// NewHooks returns hooks whose permits come from sem. The Scope of cfg is not looked at. Arguments
// that are refused make every checkout fail with the reason.
func NewHooks(sem *semaphore.Semaphore, cfg passbuddy.Config) *Hooks {
	if sem == nil {
		return &Hooks{err: errors.New("pgxpool: sem is nil")}
	}
	cfg.Scope = passbuddy.PerCheckout
	opts, err := options(cfg)
	if err != nil {
		return &Hooks{err: err}
	}
	a := allotment.New(holders{}, opts)
	if err := a.Join(sem.Engine(engine.Seam{})); err != nil {
		return &Hooks{err: fmt.Errorf("pgxpool: %w", err)}
	}
	return &Hooks{allot: a}
}

// PrepareConn waits for a permit. If there is none for as long as the caller, or AcquireTimeout,
// allows, the connection goes back to the pool, and the checkout fails. The error matches
// [semaphore.ErrCapacity] or [semaphore.ErrUnavailable], and the context's error if that was the
// cause.
func (h *Hooks) PrepareConn(ctx context.Context, conn *pgx.Conn) (bool, error) {
	if h.err != nil {
		return true, h.err
	}
	held := holderOf(conn)
	// A checkout that failed after us (in a hook of the user's that calls ours) called no hook at
	// its end.
	held.giveBack()
	ctx = h.allot.Bounded(ctx, nil)
	defer h.allot.EndWait(ctx)
	if _, err := h.allot.Enter(ctx, false); err != nil {
		return true, err
	}
	_, c, err := openTurn(ctx, h.allot, func() <-chan struct{} { return nil })
	if err != nil {
		return true, err
	}
	if !held.take(c) {
		held.giveBack()
		return true, fmt.Errorf("passbuddy: during the checkout: %w", semaphore.ErrLost)
	}
	return true, nil
}

// BeforeAcquire is PrepareConn for pgx before 5.7.6. It cannot return the error: the pool destroys
// a connection for which there is no permit, and tries again with another. Each try has its own
// AcquireTimeout.
func (h *Hooks) BeforeAcquire(ctx context.Context, conn *pgx.Conn) bool {
	_, err := h.PrepareConn(ctx, conn)
	return err == nil
}

// AfterRelease gives the permit back. It is false for a connection whose lease was lost.
func (h *Hooks) AfterRelease(conn *pgx.Conn) bool {
	if h.err != nil {
		return true
	}
	return holderOf(conn).giveBack()
}

// BeforeClose gives the permit back of a connection that was not released in good order.
func (h *Hooks) BeforeClose(conn *pgx.Conn) {
	if h.err == nil {
		holderOf(conn).giveBack()
	}
}

// holders is the allotment's pool.
type holders struct{}

// Evict is never asked for: with PerCheckout no connection has a permit while it is idle.
func (holders) Evict() bool { return false }

// Abort ends the connection that is out under slot: its lease is lost.
func (holders) Abort(slot *allotment.Slot) {
	if held, ok := slot.Attached().(*holder); ok {
		held.abort(slot)
	}
}

// holder is kept with a connection and holds the permit of its checkout. It does not keep the
// connection alive.
type holder struct {
	conn weak.Pointer[pgconn.PgConn]

	mu sync.Mutex
	c  *allotment.Slot // guarded by mu; nil between two checkouts
}

func holderOf(conn *pgx.Conn) *holder {
	data := conn.PgConn().CustomData()
	held, ok := data[customData].(*holder)
	if !ok {
		held = &holder{conn: weak.Make(conn.PgConn())}
		data[customData] = held
		runtime.AddCleanup(conn.PgConn(), func(held *holder) { held.giveBack() }, held)
	}
	return held
}

// take reports false if the lease of c is lost already.
func (h *holder) take(c *allotment.Slot) bool {
	h.mu.Lock()
	h.c = c
	h.mu.Unlock()
	return c.Attach(h)
}

// giveBack reports false if the lease was lost. It can be called with nothing to give.
func (h *holder) giveBack() bool {
	h.mu.Lock()
	c := h.c
	h.c = nil
	h.mu.Unlock()
	if c == nil {
		return true
	}
	ok := c.Usable()
	c.Gone()
	return ok
}

func (h *holder) abort(c *allotment.Slot) {
	pc := h.conn.Value()
	h.mu.Lock()
	// The lock keeps the checkout from ending between the look and the close.
	out := h.c == c && pc != nil
	if out {
		pc.Conn().Close()
	}
	h.mu.Unlock()
	if out {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = pc.CancelRequest(ctx)
	}
}
