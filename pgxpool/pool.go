package pgxpool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/internal/socket"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	// reclaimTimeout bounds the search for one idle connection. It takes microseconds, unless all
	// of MaxConns are out.
	reclaimTimeout = time.Second
	// maxMisses is after how many searches in vain a connection that is idle by our count is closed
	// from outside. The search pauses longer each time, so that is about a quarter of a second:
	// enough for a Release to end.
	maxMisses = 8
	// hijackCheck is how often a pool whose callers wait for MaxConns looks for connections that
	// were taken out of it.
	hijackCheck = 50 * time.Millisecond
)

// pool is one configured pool: the integration's side of its allotment.
type pool struct {
	backend.Lender
	allot      *allotment.Allotment
	opts       allotment.Options
	user       pgxpool.Config  // as it was when we were called: its hooks are the user's
	userTracer pgx.QueryTracer // its tracer, or nil
	tracer     *tracer
	session    *sessionUse // if Open made it: see open.go

	// known is the pool that pgx made of the config. Configure does not see it; the first checkout
	// tells.
	known    atomic.Pointer[pgxpool.Pool]
	closings closings
	misses   int // of Evict in a row; it has one caller at a time
	watching atomic.Bool
	arrivals arrivals

	background backgroundDials
}

var (
	_ allotment.BackendEnder = (*pool)(nil)
	_ allotment.SuspectEnder = (*pool)(nil)
)

// linkOf finds the socket of conn. It is nil for a connection that was not opened through our
// dialer.
func linkOf(conn *pgx.Conn) *socket.Link {
	pc := conn.PgConn()
	if s, ok := pc.Conn().(*socket.Conn); ok {
		return s.Link()
	}
	if l := socket.Of(pc.Conn()); l != nil {
		return l
	}
	l, _ := pc.CustomData()[customData].(*socket.Link)
	return l
}

// slotOf finds the slot of conn, for the scope PerConnection.
func slotOf(conn *pgx.Conn) *allotment.Slot {
	if s, ok := conn.PgConn().Conn().(*socket.Conn); ok {
		return s.Slot()
	}
	return slotBelow(conn)
}

func slotBelow(conn *pgx.Conn) *allotment.Slot {
	if l := linkOf(conn); l != nil {
		return l.Slot()
	}
	return nil
}

// customData is where the Link of a connection is kept whose socket an AfterNetConnect hook has
// wrapped.
const customData = "github.com/passbuddy/passbuddy"

// healthy tells what pgx will do with conn at its release: the same test as in
// pgxpool.Conn.Release.
func healthy(conn *pgx.Conn) bool {
	return !conn.IsClosed() && !conn.PgConn().IsBusy() && conn.PgConn().TxStatus() == 'I'
}

// taken reports whether a caller has taken the socket out of conn, by PgConn.Hijack. The backend
// lives, and the permit is its own, for as long as the caller likes.
func taken(conn *pgx.Conn) bool {
	if !conn.IsClosed() {
		return false
	}
	l := linkOf(conn)
	return l != nil && l.Taken()
}

// Abort ends the connection of slot, whoever uses it: its lease is lost.
func (p *pool) Abort(slot *allotment.Slot) {
	l, ok := slot.Attached().(*socket.Link)
	if !ok {
		return
	}
	why := slot.AbortCause()
	if why == nil { // it lived without a permit. A caller may have it by now: it ends at its return
		if slot.LeaveUncounted() {
			l.Close()
		}
		return
	}
	l.AbortFor(why)
}

// closeInPlace closes connections that the pool believes to be idle. The pool finds out when it
// next takes one: PrepareConn refuses it, or its ping fails.
func closeInPlace(slots ...*allotment.Slot) {
	for _, slot := range slots {
		if l, ok := slot.Attached().(*socket.Link); ok {
			l.Close()
		}
	}
}

// Evict ends an idle connection through a checkout for evictIdle, which PrepareConn refuses. So the
// pool destroys the connection, and the pool decides whether it is idle at all.
//
// It can fail to find one that is idle by our count: between TraceRelease and the end of Release,
// or when an abandoned ping holds it. If it goes on like that, the connection is closed in place,
// where nobody can have it in use.
func (p *pool) Evict() bool {
	known := p.known.Load()
	if known != nil {
		ctx, cancel := context.WithTimeout(context.Background(), reclaimTimeout)
		defer cancel()
		r := &checkout{Context: ctx, pool: p, purpose: evictIdle}
		conn, err := known.Acquire(r)
		if err == nil { // a PrepareConn that was set after Configure let it through
			conn.Release()
		}
		if r.evicted {
			p.misses = 0
			return true
		}
		if p.misses++; p.misses < maxMisses {
			return false
		}
	}
	p.misses = 0
	slot := p.allot.EvictIdle()
	if slot == nil {
		return false
	}
	closeInPlace(slot)
	return true
}

var errReclaimed = errors.New(
	"pgxpool: this checkout only looks for an idle connection to give up")

// reclaim decides about the idle connection that the search has found.
func (c *checkout) reclaim(conn *pgx.Conn) (bool, error) {
	l := linkOf(conn)
	if c.purpose == seeClose {
		return !l.Closed(), errReclaimed
	}
	slot := l.Slot()
	if slot == nil || !slot.Usable() {
		return false, errReclaimed // closed in place, and left behind
	}
	c.evicted = slot.Evict()
	return !c.evicted, errReclaimed
}

// watch looks out for connections outside the pool, hijacked or opened by hand, while callers wait
// for MaxConns. Hijack calls no hook, and frees a place in the pool, for which the callers that
// wait must learn to ask.
func (p *pool) watch() {
	if p.watching.CompareAndSwap(false, true) {
		time.AfterFunc(hijackCheck, p.countOutside)
	}
}

func (p *pool) countOutside() {
	out, crowded := p.allot.Crowded()
	known := p.known.Load()
	if !crowded {
		p.watching.Store(false)
		return
	}
	if known != nil {
		// Both counts move while we look. A connection is checked out by our count only while it is
		// acquired by pgx's, so that does not make the difference too large. One that is too small
		// is seen next time.
		out -= int(known.Stat().AcquiredConns())
	}
	p.allot.SetOutside(max(0, out))
	time.AfterFunc(hijackCheck, p.countOutside)
}

// lend is a [backend.Lender]'s.
func (p *pool) lend(ctx context.Context, use func(*pgconn.PgConn)) error {
	known := p.known.Load()
	if known == nil {
		return fmt.Errorf("pgxpool: nobody has checked anything out yet: %w",
			semaphore.ErrCapacity)
	}
	conn, err := known.Acquire(&checkout{Context: ctx, pool: p, purpose: askServer})
	switch {
	case err == nil:
	case errors.Is(err, errClosedPool(known)):
		// The server may be up: what is in doubt stays counted.
		return fmt.Errorf("pgxpool: %w: %w", err, semaphore.ErrClosed)
	default:
		return err
	}
	defer conn.Release()
	use(conn.Conn().PgConn())
	return nil
}
