package socket

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"weak"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

const (
	// drainTimeout is how long a connection that is being closed waits for the server's end before
	// it takes stronger measures. As long as pgx gives its own clean-up, which is counted.
	drainTimeout = 15 * time.Second
	// blindDrainTimeout is drainTimeout for a socket that cannot be half-closed: where no Terminate
	// was sent, the server only learns of the end by the real close. It is also that of a server
	// that never said a word: there is no session to end.
	blindDrainTimeout = 2 * time.Second
	// minDrain is the rest of drainTimeout for a socket that pgx has used it up for.
	minDrain = time.Second
	// drainAfterCancel is how long the server has to answer the last cancel request.
	drainAfterCancel = 5 * time.Second

	cancelTimeout  = time.Second
	firstCancel    = 10 * time.Millisecond // an idle backend ends by itself within this
	maxCancelPause = time.Second
)

// Link is the part of a wrapped socket that outlives the wrapper: it holds the permit and ends the
// connection. It must not point to the [Conn], which would then never be collected.
type Link struct {
	inner  net.Conn
	slot   atomic.Pointer[allotment.Slot]
	cancel atomic.Pointer[func(context.Context) error]
	peer   atomic.Pointer[peer]
	closed atomic.Bool
	ended  atomic.Bool           // finish was called
	heard  atomic.Bool           // the server has said something; suspect clears it, to see whether it still does
	eof    atomic.Bool           // the server has closed its end
	broken atomic.Bool           // the network has ended the connection: an EOF that follows is not the server's
	why    atomic.Pointer[error] // see AbortFor
	peeked atomic.Bool           // a read has failed for that: see endedError
	left   atomic.Bool           // the driver has closed it
	gone   chan struct{}
	made   time.Duration // when the socket was, see now
}

// Slot is the slot that ends with the socket, or nil.
func (l *Link) Slot() *allotment.Slot { return l.slot.Load() }

// Bind lets s end with the socket. It reports false if the lease of s is lost already; the caller
// must then Abort.
func (l *Link) Bind(s *allotment.Slot) bool {
	ok := s.Attach(l)
	l.slot.Store(s)
	if l.closed.Load() {
		// Closed in the meantime. Close read slot before or after our Store; Leave and Gone can
		// both be repeated.
		s.Leave()
		select {
		case <-l.gone:
			l.end()
		default:
		}
	}
	return ok
}

// Unbind undoes Bind and returns what was bound, or nil: the socket goes on without.
func (l *Link) Unbind() *allotment.Slot { return l.slot.Swap(nil) }

// SetCancel sets how to stop what the server is running for this connection. It must be safe to
// call at any time, also after the close, and must not keep the [Conn] alive.
func (l *Link) SetCancel(cancel func(context.Context) error) { l.cancel.Store(&cancel) }

// Opened tells that pc is the connection that came of this socket. So the link knows its backend,
// and how to cancel what it runs. pc's CancelRequest only reads what does not change after the
// connect. pc is not kept alive: one that is dropped must be collected, and closed.
func (l *Link) Opened(pc *pgconn.PgConn) {
	p := &peer{pid: pc.PID(), since: now(), pc: weak.Make(pc)}
	p.took = p.since - l.made
	l.SetCancel(p.cancel)
	l.peer.Store(p)
}

// Closed reports whether Close was called.
func (l *Link) Closed() bool { return l.closed.Load() }

// spoke reports whether the server has ever said anything. It is for sockets that no connection
// came of: see suspect.
func (l *Link) spoke() bool { return l.heard.Load() }

// Gone is closed when the server's backend has ended, as far as can be known.
func (l *Link) Gone() <-chan struct{} { return l.gone }

// Close ends the connection without waiting: it tells the allotment, and leaves the rest to the
// background. The second and later calls do nothing.
func (l *Link) Close() error {
	if !l.closed.CompareAndSwap(false, true) {
		return nil
	}
	if s := l.slot.Load(); s != nil {
		s.Leave()
	}
	l.Leaving()
	go l.drain()
	return nil
}

// Abandon gives up on a socket that no connection came of, and whose backend does not end. It
// logged nobody in, or its owner has let go of it. What the server has started for it ends when it
// next reads or writes.
func (l *Link) Abandon() {
	l.closed.Store(true)
	l.reset()
	l.finish()
}

// reset closes the socket for good. Where it can, it has the server's side forget what it has not
// read yet: a server that wakes up logs nobody in.
func (l *Link) reset() {
	if tcp, ok := l.inner.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	_ = l.inner.Close()
}

// Abort is Close for a connection that must not live on. A backend that is busy, and so does not
// notice that its client has gone, is cancelled. Abort returns when the backend has ended, or after
// drainTimeout and some seconds.
func (l *Link) Abort() {
	l.Close()
	timer := time.NewTimer(firstCancel)
	defer timer.Stop()
	for pause := firstCancel; ; {
		select {
		case <-l.gone:
			return
		case <-timer.C:
		}
		// Again and again: a cancel that arrives between two statements of a batch stops neither.
		l.sendCancel()
		pause = min(2*pause, maxCancelPause)
		timer.Reset(pause)
	}
}

// AbortFor is Abort for a connection that somebody uses: its reads fail with an error that matches
// why, and net.ErrClosed as for any closed socket.
func (l *Link) AbortFor(why error) {
	if why != nil {
		l.why.Store(&why)
	}
	l.Abort()
}

// errClosed is the error of a read from a closed socket.
func (l *Link) errClosed() error {
	why := l.why.Load()
	if why == nil {
		return net.ErrClosed
	}
	err := &endedError{why: *why}
	switch {
	case inBackground():
		err.timeouts.Store(2) // one for the background reader, which drops it; over TLS the next reader gets the same error
	case !l.peeked.Swap(true):
		err.timeouts.Store(1)
	}
	return err
}

// drop is a write to a closed socket.
func (l *Link) drop(b []byte) (int, error) {
	if l.why.Load() == nil || l.left.Load() {
		return 0, net.ErrClosed
	}
	return len(b), nil
}

// endedError is what the user of a connection sees that we have ended under it.
//
// pgx's MultiResultReader.NextResult drops the error of the first read, by which pgx closes the
// connection, and reports "conn closed" instead. It does not close, and reads again, where that
// error is a timeout. So the error of the first read calls itself one, once: pgx asks a second time
// before it reports one.
type endedError struct {
	why      error
	timeouts atomic.Int32
}

var _ net.Error = (*endedError)(nil)

func (e *endedError) Error() string {
	return "passbuddy: this connection was ended while it was in use: " + e.why.Error()
}

func (e *endedError) Unwrap() []error { return []error{e.why, net.ErrClosed} }
func (e *endedError) Timeout() bool   { return e.timeouts.Load() > 0 && e.timeouts.Add(-1) >= 0 }
func (e *endedError) Temporary() bool { return false }

// sendCancel reports whether the server has taken the request. Whether it worked shows at the
// socket.
func (l *Link) sendCancel() bool {
	cancel := l.cancel.Load()
	if cancel == nil {
		return false
	}
	ctx, stop := context.WithTimeout(context.Background(), cancelTimeout)
	defer stop()
	return (*cancel)(ctx) == nil && ctx.Err() == nil // pgx makes nothing of a reply that did not come
}

// drain reads until the server has closed its end.
func (l *Link) drain() {
	// Wake whoever still reads or writes, and take over: reads of one socket are served one after
	// the other, so this Read returns when an earlier one has. Deadlines that the driver left
	// behind end here too; the wrapper lets none through any more.
	if l.inner.SetDeadline(longAgo) == nil {
		var b [1]byte
		_, _ = l.inner.Read(b[:])
		_ = l.inner.SetDeadline(time.Time{})
	}
	most := blindDrainTimeout
	if half, ok := l.inner.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		if p := l.peer.Load(); p != nil {
			most = max(minDrain, drainTimeout-p.leavingFor())
		} else if l.heard.Load() {
			most = drainTimeout
		}
	}
	bound := time.AfterFunc(most, l.giveUp)
	_, err := io.Copy(io.Discard, heardReader{l})
	bound.Stop()
	if err == nil {
		err = io.EOF
	}
	l.note(err)
	if l.eof.Load() || !l.doubt() {
		l.finish()
	}
}

// heardReader reads what is left, and takes note of it.
type heardReader struct{ l *Link }

func (r heardReader) Read(b []byte) (int, error) {
	n, err := r.l.inner.Read(b)
	if n > 0 {
		r.l.hear()
	}
	return n, err
}

func (l *Link) hear() {
	if !l.heard.Load() {
		l.heard.Store(true)
	}
}

// note keeps what an error of the socket says about its end. After a reset, or a time-out of the
// network's, Linux reports EOF.
func (l *Link) note(err error) {
	switch {
	case err == io.EOF:
		if !l.broken.Load() {
			l.eof.Store(true)
		}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed): // our own doing
	default:
		l.broken.Store(true)
	}
}

// giveUp ends a drain that takes too long: the network is dead, or the backend is busy and does not
// write. In the latter case it would outlive its permit, so it is cancelled first; or ended, where
// we know which it is.
func (l *Link) giveUp() {
	if l.doubt() {
		return
	}
	if l.cancel.Load() != nil {
		l.sendCancel()
		timer := time.NewTimer(drainAfterCancel)
		defer timer.Stop()
		select {
		case <-l.gone:
			return
		case <-timer.C:
		}
	}
	l.reset()
}

// finish gives the permit back: nothing is waited for any more.
func (l *Link) finish() {
	if !l.ended.CompareAndSwap(false, true) {
		return
	}
	_ = l.inner.Close()
	close(l.gone)
	l.cancel.Store(nil)
	if p := l.peer.Load(); p != nil {
		p.held.Store(nil) // the timer of suspect holds us for a while, and that would hold pgx's buffers
	}
	l.end()
}

func (l *Link) end() {
	if s := l.slot.Swap(nil); s != nil {
		s.Gone()
	}
}

var longAgo = time.Unix(1, 0)

// inBackground reports whether pgx's background reader reads.
func inBackground() bool {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "bgreader.(*BGReader).bgRead") {
			return true
		}
		if !more {
			return false
		}
	}
}
