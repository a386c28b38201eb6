package socket

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
	"weak"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// This file is for connections whose end does not show at the socket: a NAT or a firewall has
// forgotten them, or something on the way has reset them. Their backends live on, and wait for
// hours for a client that has gone. So the permit stays counted, in doubt, and the allotment has
// Postgres end the backend over another connection (see allotment.Suspect).
//
// What puts a connection in doubt, once its owner has begun to close it:
//
//   - the network has ended it: a read or write failed with anything else than EOF;
//   - the server answers a cancel request, and yet this socket says nothing for as long again as
//     that took, four times, and minSilence at least. A machine that starves is slow at both;
//   - drainTimeout has passed.
//
// An EOF ends every doubt. Only a connection that a PgConn came of can be in doubt: otherwise
// nobody knows which backend it has.

const (
	// suspectAfter is when a connection that is being closed, and still has a backend, is looked
	// at: one that is sound ends within milliseconds. A server that is far away, or starved, took
	// its time for the startup exchange; it has suspectTimes that, up to maxSuspectAfter.
	suspectAfter    = 250 * time.Millisecond
	suspectTimes    = 10
	maxSuspectAfter = 3 * time.Second
	minSilence      = 150 * time.Millisecond
	// suspectPause is when one whose server does not answer, or that still says something, is
	// looked at again.
	suspectPause = time.Second
)

// peer is the backend at the other end.
type peer struct {
	pid     uint32
	since   time.Duration // it was there, see now
	took    time.Duration // the startup exchange
	pc      weak.Pointer[pgconn.PgConn]
	held    atomic.Pointer[pgconn.PgConn] // pc, for cancel, once its owner has begun to close it
	leaving atomic.Int64                  // when that was, see now; or 0
	doubted atomic.Bool
}

var errDropped = errors.New("passbuddy: the connection to cancel was dropped")

func (p *peer) cancel(ctx context.Context) error {
	pc := p.held.Load()
	if pc == nil {
		if pc = p.pc.Value(); pc == nil {
			return errDropped
		}
	}
	return pc.CancelRequest(ctx)
}

// leavingFor is how long ago the owner began to close the connection, as far as we were told.
func (p *peer) leavingFor() time.Duration {
	at := p.leaving.Load()
	if at == 0 {
		return 0
	}
	return now() - time.Duration(at)
}

// Leaving tells that the owner has begun to close the connection. Close follows; after a cancelled
// query pgx takes up to 15 s for it.
func (l *Link) Leaving() {
	p := l.peer.Load()
	if p == nil || !p.leaving.CompareAndSwap(0, int64(now())) {
		return
	}
	p.held.Store(p.pc.Value()) // alive: its owner is closing it. Or dropped, and collected
	time.AfterFunc(min(max(suspectAfter, suspectTimes*p.took), maxSuspectAfter), l.suspect)
}

// suspect looks whether the server lives, and the connection does not.
func (l *Link) suspect() {
	if l.over() || l.slot.Load() == nil {
		return
	}
	l.heard.Store(false)
	asked := time.Now()
	if !l.sendCancel() {
		time.AfterFunc(suspectPause, l.suspect)
		return
	}
	time.AfterFunc(max(minSilence, 4*time.Since(asked)), func() {
		switch {
		case l.over():
		case l.heard.Load():
			time.AfterFunc(suspectPause, l.suspect)
		default:
			l.doubt()
		}
	})
}

// over reports whether nothing is left to find out.
func (l *Link) over() bool {
	p := l.peer.Load()
	return l.ended.Load() || l.eof.Load() || p == nil || p.doubted.Load()
}

// doubt leaves it to the allotment to find out whether the backend has ended. It reports false if
// that cannot be done.
//
// The socket is of no use any more, and closed: pgx's clean-up, if it is still at work, ends at
// once, and frees its place in pgx's pool. The drain that may be under way ends by that too, and
// finds the doubt. Or it has seen the server's EOF before, and finishes: then the allotment hears
// of Gone, whatever it was about to ask.
func (l *Link) doubt() bool {
	p, s := l.peer.Load(), l.slot.Load()
	if p == nil || s == nil || l.eof.Load() {
		return false
	}
	if !p.doubted.CompareAndSwap(false, true) {
		return true
	}
	ok := s.Doubt(&allotment.Suspect{PID: p.pid, Since: begin.Add(p.since), Addr: l.addr(), Ended: l.finish})
	if !ok {
		p.doubted.Store(false)
		return false
	}
	l.closed.Store(true)
	l.reset()
	return true
}

// begin is when the program began. Times are kept as what has passed since then: a third of a
// time.Time, of which every idle connection would have several.
var begin = time.Now()

func now() time.Duration { return time.Since(begin) + 1 } // never 0

// addr is the server's address, as the socket knows it.
func (l *Link) addr() string {
	if a := l.inner.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}
