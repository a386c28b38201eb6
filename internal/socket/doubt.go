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

// This file handles connections whose end the socket does not show: a NAT or a firewall has
// forgotten or reset them. Their backends live on, and wait for hours for a client that has gone.
// So the permit stays counted, in doubt, and the allotment has Postgres end the backend over
// another connection (see allotment.Suspect).
//
// Once its owner has begun to close it, one of these puts a connection in doubt:
//
//   - the network has ended it: a read or write failed with another error than EOF;
//   - the server answers a cancel request, and yet this socket says nothing for as long again as
//     that took, four times, and minSilence at least. A machine that starves is slow at both;
//   - drainTimeout has passed.
//
// An EOF ends every doubt. Only a socket with a PgConn can be in doubt: for any other we do not
// know the backend.

const (
	// suspectAfter is how long after its close began we check a connection that still has a
	// backend. A sound connection ends within milliseconds. A server that is far away, or starved,
	// also took long for the startup exchange. It gets suspectTimes that time, up to
	// maxSuspectAfter.
	suspectAfter    = 250 * time.Millisecond
	suspectTimes    = 10
	maxSuspectAfter = 3 * time.Second
	minSilence      = 150 * time.Millisecond
	// suspectPause is the pause before the next check, if the server does not answer or still sends
	// data.
	suspectPause = time.Second
)

// peer is the backend at the other end.
type peer struct {
	pid     uint32
	since   time.Duration // when the backend is known to have lived, see now
	took    time.Duration // of the startup exchange
	pc      weak.Pointer[pgconn.PgConn]
	held    atomic.Pointer[pgconn.PgConn] // pc, for cancel, once its owner has begun to close it
	leaving atomic.Int64                  // when the close began, see now; or 0
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

// leavingFor returns how long ago the owner began to close the connection, as far as we know.
func (p *peer) leavingFor() time.Duration {
	at := p.leaving.Load()
	if at == 0 {
		return 0
	}
	return now() - time.Duration(at)
}

// Leaving records that the owner has begun to close the connection. Close follows; after a
// cancelled query pgx takes up to 15 s for it.
func (l *Link) Leaving() {
	p := l.peer.Load()
	if p == nil || !p.leaving.CompareAndSwap(0, int64(now())) {
		return
	}
	p.held.Store(p.pc.Value()) // alive while its owner closes it; nil if dropped and collected
	time.AfterFunc(min(max(suspectAfter, suspectTimes*p.took), maxSuspectAfter), l.suspect)
}

// suspect checks whether the server lives although the connection is dead.
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

// over reports whether the end is known.
func (l *Link) over() bool {
	p := l.peer.Load()
	return l.ended.Load() || l.eof.Load() || p == nil || p.doubted.Load()
}

// doubt leaves it to the allotment to find out whether the backend has ended. It reports false if
// the allotment cannot.
//
// The socket is useless now, so we close it. pgx's clean-up, if it still runs, then ends at once
// and frees its place in pgx's pool. A running drain ends too, and finds the doubt. If it has
// already seen the server's EOF, it calls finish, and the allotment is told of Gone, whatever it
// was about to ask.
func (l *Link) doubt() bool {
	p, s := l.peer.Load(), l.slot.Load()
	if p == nil || s == nil || l.eof.Load() {
		return false
	}
	if !p.doubted.CompareAndSwap(false, true) {
		return true
	}
	ok := s.Doubt(&allotment.Suspect{PID: p.pid, Since: begin.Add(p.since), Addr: l.addr(),
		Ended: l.finish})
	if !ok {
		p.doubted.Store(false)
		return false
	}
	l.closed.Store(true)
	l.reset()
	return true
}

// begin is when the program began. We keep times as durations since then: a third of the size of a
// time.Time, and every idle connection has several.
var begin = time.Now()

func now() time.Duration { return time.Since(begin) + 1 } // never 0

// addr returns the server's address, as the socket knows it.
func (l *Link) addr() string {
	if a := l.inner.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}
