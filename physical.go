package passbuddy

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/socket"
)

// physical is one connection of the driver. It can pass from one wrapper to another (see conn).
//
// Nothing calls a method of inner while another may run: database/sql holds its lock on the wrapper through an operation, and a wrapper
// that does not hold the connection never calls it. Two things reach an idle connection past its wrapper, and pinned
// tells whether they might: prepared statements, which database/sql closes when it likes. While they might, inner is
// called from its own wrapper only; from outside the socket can be closed, no more.
type physical struct {
	cn    *connector
	inner driver.Conn
	shape shape
	optional
	pgx  *pgx.Conn    // inner's own, if it has one
	link *socket.Link // its socket, if we follow it

	opened time.Time

	// Written by who has checked the connection out, or opens it; slot in PerCheckout under idleList.mu too.
	slot       *allotment.Slot // PerConnection: its permit. PerCheckout: the one that covers the checkout, or nil
	pinned     allotment.Pin
	statements bool // somebody may still close a statement on it, even after it was closed

	moved  atomic.Bool                // it was handed over past its wrapper: see age.go
	expiry atomic.Pointer[time.Timer] // see age.go

	broken atomic.Bool           // its lease is lost: it fails at the next operation
	why    atomic.Pointer[error] // with broken: why it was ended while it may have been in use, or nil
	ended  atomic.Bool           // end was called
}

// optional is what inner implements beyond driver.Conn, asserted once.
type optional struct {
	pinger    driver.Pinger
	execer    driver.ExecerContext
	oldExecer driver.Execer //nolint:staticcheck // drivers still implement it
	queryer   driver.QueryerContext
	oldQuery  driver.Queryer //nolint:staticcheck // drivers still implement it
	preparer  driver.ConnPrepareContext
	beginner  driver.ConnBeginTx
	checker   driver.NamedValueChecker
	resetter  driver.SessionResetter
	validator driver.Validator
}

func newPhysical(cn *connector, inner driver.Conn, link *socket.Link) *physical {
	ph := &physical{cn: cn, inner: inner, link: link, opened: time.Now()}
	o := &ph.optional
	o.pinger, _ = inner.(driver.Pinger)
	o.execer, _ = inner.(driver.ExecerContext)
	o.oldExecer, _ = inner.(driver.Execer) //nolint:staticcheck // see optional
	o.queryer, _ = inner.(driver.QueryerContext)
	o.oldQuery, _ = inner.(driver.Queryer) //nolint:staticcheck // see optional
	o.preparer, _ = inner.(driver.ConnPrepareContext)
	o.beginner, _ = inner.(driver.ConnBeginTx)
	o.checker, _ = inner.(driver.NamedValueChecker)
	o.resetter, _ = inner.(driver.SessionResetter)
	o.validator, _ = inner.(driver.Validator)
	if o.execer != nil || o.oldExecer != nil {
		ph.shape |= execs
	}
	if o.queryer != nil || o.oldQuery != nil {
		ph.shape |= queries
	}
	if c, ok := inner.(interface{ Conn() *pgx.Conn }); ok {
		if ph.pgx = c.Conn(); ph.pgx != nil && link != nil {
			link.Opened(ph.pgx.PgConn())
		}
	}
	return ph
}

// reset does what database/sql does before it hands out a used connection, for one that changes hands past it.
func (ph *physical) reset(ctx context.Context) bool {
	if !ph.valid() {
		return false
	}
	return ph.resetter == nil || !errors.Is(ph.resetter.ResetSession(ctx), driver.ErrBadConn)
}

// valid is the driver's IsValid. pgx's stdlib has none, and would let dead connections, with their permits, lie in the pool until
// their next checkout.
func (ph *physical) valid() bool {
	switch {
	case ph.broken.Load():
		return false
	case ph.validator != nil && !ph.validator.IsValid():
		return false
	case ph.pgx != nil && ph.pgx.IsClosed():
		return false
	}
	return true
}

// Where the driver's Close is called.
const (
	inBackground = false // database/sql may hold its lock on the whole DB, and the driver's Close is I/O
	inline       = true
)

// end closes the connection, once. Its permit comes back when the backend is gone. The caller is the only one who may call inner.
func (ph *physical) end(where bool) error {
	if !ph.ended.CompareAndSwap(false, true) {
		return nil
	}
	if timer := ph.expiry.Load(); timer != nil {
		timer.Stop()
	}
	ph.cn.endBegins()
	if ph.link != nil {
		if ph.cn.cfg.Scope == PerCheckout && ph.slot != nil {
			ph.link.Bind(ph.slot) // its owner is done with it: whatever comes of the backend, the permit is the socket's
		}
		ph.link.Leaving()
	}
	if where {
		evicted := ph.link != nil && ph.link.Closed()
		err := ph.inner.Close()
		go ph.follow()
		if evicted {
			return nil // what the driver makes of a socket that we have closed is not its user's concern
		}
		return err
	}
	go func() {
		_ = ph.inner.Close() // as database/sql does on most of its paths
		ph.follow()
	}()
	return nil
}

// cleanUpMost is how long pgx may go on with a connection that it has closed (pgconn's asyncClose).
const cleanUpMost = 15 * time.Second

// follow waits until the backend is gone, as well as that can be known.
func (ph *physical) follow() {
	if ph.link != nil {
		<-ph.link.Gone() // as late as its owner likes, where it was hijacked
	} else {
		if ph.pgx != nil {
			timer := time.NewTimer(cleanUpMost)
			select {
			case <-ph.pgx.PgConn().CleanupDone():
			case <-timer.C:
			}
			timer.Stop()
		}
		time.Sleep(ph.cn.linger.duration())
	}
	if ph.slot != nil {
		ph.slot.Gone()
	}
	ph.cn.endDone()
}

// endIdle ends a connection that lies idle in database/sql's free list, or parked, and was made to leave. Its wrapper, if there is one,
// finds out at its next checkout.
func (ph *physical) endIdle() {
	if ph.pinned == allotment.Free {
		_ = ph.end(inBackground)
		return
	}
	// The wrapper will call inner's Close, at its next checkout or with the DB; the backend ends now.
	ph.broken.Store(true)
	_ = ph.link.Close()
}

// abort ends the connection at once if it can be done from outside. c is the slot whose lease is lost.
func (ph *physical) abort(c *allotment.Slot) {
	why := c.AbortCause()
	if why == nil { // it lived without a permit, and a caller may have it by now: then it ends at its return
		if c.LeaveUncounted() {
			ph.endIdle()
		}
		return
	}
	ph.why.Store(&why) // before broken is set. A connection that is not broken has no use for it: see breaks
	if ph.cn.cfg.Scope == PerCheckout {
		if !ph.cn.idle.breaks(ph, c) {
			return
		}
	} else {
		ph.broken.Store(true)
		if c.LeaveIdle() {
			_ = ph.end(inBackground)
		}
	}
	if ph.link != nil {
		ph.link.AbortFor(why)
	}
}

// pin notes that a statement was prepared which database/sql keeps.
func (ph *physical) pin(kind statementKind) {
	if kind == closedByCall {
		return
	}
	ph.statements = true
	want := allotment.Free
	switch kind {
	case keptByDB:
		want = allotment.Held
	case keptByConn:
		want = allotment.Fixed
	}
	if want > ph.pinned {
		ph.setPin(want)
	}
}

func (ph *physical) setPin(p allotment.Pin) {
	ph.pinned = p
	switch {
	case ph.cn.cfg.Scope == PerCheckout: // its permits cover no idle connection
	case p == allotment.Free:
		ph.slot.Pin(allotment.Free)
	case ph.link != nil:
		ph.slot.Pin(allotment.Held) // by its socket it can always be ended
	default:
		ph.slot.Pin(allotment.Fixed)
	}
}
