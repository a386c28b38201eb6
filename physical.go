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
// Nothing calls a method of inner while another may run. database/sql holds its lock on the wrapper
// through an operation, and a wrapper that does not hold the connection never calls it. Prepared
// statements, which database/sql closes when it likes, reach an idle connection past its wrapper;
// pinned tells whether they might. While they might, inner is called from its own wrapper only:
// from outside the socket can be closed, no more.
type physical struct {
	cn    *connector
	inner driver.Conn
	shape shape
	optional
	pgx  *pgx.Conn    // inner's own, if it has one
	link *socket.Link // its socket, if we follow it

	opened time.Time

	// Written by the caller that has checked the connection out, or opens it; slot in PerCheckout
	// under idleList.mu too. PerConnection: slot is its permit. PerCheckout: slot is the permit
	// that covers the checkout, or nil.
	slot       *allotment.Slot
	pinned     allotment.Pin
	statements bool // a statement on it may still be closed, even after it was closed itself

	moved  atomic.Bool                // it was handed over past its wrapper: see age.go
	expiry atomic.Pointer[time.Timer] // see age.go

	broken     atomic.Bool           // its lease is lost: it fails at the next operation
	why        atomic.Pointer[error] // with broken: why it ended while in use, maybe; or nil
	closeBegun atomic.Bool           // close was called
	hijacked   bool                  // written by beginClose: see taken
}

// optional holds those of driver.Conn's optional interfaces that inner implements, asserted once.
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
	if ph.pgx = pgxConn(inner); ph.pgx != nil && link != nil {
		link.Opened(ph.pgx.PgConn())
	}
	return ph
}

// pgxConn is inner's own, or nil if it has none.
func pgxConn(inner driver.Conn) *pgx.Conn {
	if c, ok := inner.(interface{ Conn() *pgx.Conn }); ok {
		return c.Conn()
	}
	return nil
}

// resetSession does for a connection that changes hands past database/sql what that does before it
// hands out a used one.
func (ph *physical) resetSession(ctx context.Context) bool {
	return ph.resetter == nil || !errors.Is(ph.resetter.ResetSession(ctx), driver.ErrBadConn)
}

// valid is the driver's IsValid. pgx's stdlib has none, and would let dead connections, with their
// permits, lie in the pool until their next checkout.
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

// taken reports whether the caller that has ph checked out took its socket, by PgConn.Hijack. The
// backend lives, under its permit, for as long as that caller likes.
func (ph *physical) taken() bool {
	return ph.pgx != nil && ph.link != nil && ph.pgx.IsClosed() && ph.link.Taken()
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
