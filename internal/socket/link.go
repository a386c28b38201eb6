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
	// drainTimeout is how long a closing connection waits for the server's end before it takes
	// stronger measures. It equals the time that pgx gives its own clean-up, which counts towards
	// it.
	drainTimeout = 15 * time.Second
	// blindDrainTimeout is drainTimeout for a socket that cannot be half-closed: without a
	// Terminate, only the real close tells the server of the end. It also applies to a server that
	// never sent anything: there is no session to end.
	blindDrainTimeout = 2 * time.Second
	// minDrain is the least drain time, for a socket whose drainTimeout pgx has used up.
	minDrain = time.Second
	// drainAfterCancel is how long the server has to answer the last cancel request.
	drainAfterCancel = 5 * time.Second

	cancelTimeout  = time.Second
	firstCancel    = 10 * time.Millisecond // an idle backend ends by itself within this
	maxCancelPause = time.Second
)

// Link is the part of a wrapped socket that outlives the wrapper: it holds the permit and ends the
// connection. It must not point to the [Conn], or the garbage collector would never free that.
type Link struct {
	inner  net.Conn
	slot   atomic.Pointer[allotment.Slot]
	cancel atomic.Pointer[func(context.Context) error]
	peer   atomic.Pointer[peer]
	closed atomic.Bool
	ended  atomic.Bool // finish was called
	// the server has sent data; suspect clears it, to see whether more comes
	heard atomic.Bool
	eof   atomic.Bool // the server has closed its end
	// the network has ended the connection: a later EOF is not the server's
	broken atomic.Bool
	failed atomic.Bool           // the driver's last read or write did: see Taken
	why    atomic.Pointer[error] // see AbortFor
	peeked atomic.Bool           // a read has failed for why: see endedError
	left   atomic.Bool           // the driver has closed it
	gone   chan struct{}
	made   time.Duration // when the socket was made, see now
}

// Slot returns the slot that ends with the socket, or nil.
func (l *Link) Slot() *allotment.Slot { return l.slot.Load() }

// Bind lets s end with the socket. It reports false if the lease of s is lost already; the caller
// must then Abort.
func (l *Link) Bind(s *allotment.Slot) bool {
	ok := s.Attach(l)
	l.slot.Store(s)
	if l.closed.Load() {
		// The socket was closed meanwhile. Close may have read slot before or after our Store, so
		// we repeat Leave and Gone; both are idempotent.
		s.Leave()
		select {
		case <-l.gone:
			l.end()
		default:
		}
	}
	return ok
}

// Unbind undoes Bind and returns the slot, or nil. The socket goes on without it.
func (l *Link) Unbind() *allotment.Slot { return l.slot.Swap(nil) }

// SetCancel sets the function that stops what the server runs for this connection. It must be safe
// to call at any time, even after the close, and must not keep the [Conn] alive.
func (l *Link) SetCancel(cancel func(context.Context) error) { l.cancel.Store(&cancel) }

// Opened records that pc is the connection of this socket. So the link knows its backend, and how
// to cancel its queries. pc's CancelRequest reads only fields that stay the same after the connect.
// The link does not keep pc alive: the garbage collector must free a dropped pc, which closes it.
func (l *Link) Opened(pc *pgconn.PgConn) {
	p := &peer{pid: pc.PID(), since: now(), pc: weak.Make(pc)}
	p.took = p.since - l.made
	l.SetCancel(p.cancel)
	l.peer.Store(p)
}

// Closed reports whether Close was called.
func (l *Link) Closed() bool { return l.closed.Load() }

// spoke reports whether the server has ever sent data. Only for sockets without a PgConn: see
// suspect.
func (l *Link) spoke() bool { return l.heard.Load() }

// Taken reports whether a caller of PgConn.Hijack has the socket. It is asked about a connection
// that is closed for pgx. pgx itself closes one after a read or a write has failed, but for those
// of inWait. It then takes up to 15 s until it closes the socket. Or it closes both at once.
func (l *Link) Taken() bool { return !l.closed.Load() && !l.failed.Load() }

// Gone returns a channel that is closed when the server's backend has ended, as far as we can know.
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

// Abandon gives up on a socket without a PgConn whose backend does not end. No login succeeded on
// it, or its owner has dropped it. A process that the server has started for it ends when it next
// reads or writes.
func (l *Link) Abandon() {
	l.closed.Store(true)
	l.reset()
	l.finish()
}

// reset closes the socket for good. If it can, it makes the server's side drop the data that it has
// not read yet. So a server that wakes up completes no login.
func (l *Link) reset() {
	if tcp, ok := l.inner.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	_ = l.inner.Close()
}

// Abort is Close for a connection that must not live on. A busy backend does not notice that its
// client has gone, so Abort cancels its query. Abort returns when the backend has ended, or after
// drainTimeout and some seconds.
func (l *Link) Abort() {
	l.Close()
	// We repeat the cancel: one that arrives between two statements of a batch stops neither.
	for pause := firstCancel; ; pause = min(2*pause, maxCancelPause) {
		select {
		case <-l.gone:
			return
		case <-time.After(pause):
		}
		l.sendCancel()
	}
}

// AbortFor is Abort for a connection in use: its reads fail with an error that matches why, and
// net.ErrClosed as for any closed socket.
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
		// the background reader drops one; over TLS the next reader gets the same error
		err.timeouts.Store(2)
	case !l.peeked.Swap(true):
		err.timeouts.Store(1)
	}
	return err
}

// drop replaces a write to a closed socket.
func (l *Link) drop(b []byte) (int, error) {
	if l.why.Load() == nil || l.left.Load() {
		return 0, net.ErrClosed
	}
	return len(b), nil
}

// endedError is the error that the user of a connection gets if we have ended it.
//
// pgx's MultiResultReader.NextResult drops the error of the first read, by which pgx closes the
// connection, and reports "conn closed" instead. If that error is a timeout, NextResult does not
// close, and reads again. So the error of the first read calls itself a timeout, once: pgx asks a
// second time before it reports a timeout.
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
	return (*cancel)(ctx) == nil && ctx.Err() == nil // pgx returns no error if no reply came
}

// drain reads until the server has closed its end.
func (l *Link) drain() {
	// Wake any reader and writer, and take over. Reads of one socket run one after the other, so
	// this Read returns after any earlier one. This also clears deadlines that the driver left
	// behind; the wrapper lets no more through.
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

// heardReader reads the remaining data, and sets heard.
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
	if l.failed.Load() {
		l.failed.Store(false)
	}
}

// note records what an error of the socket says about its end. After a reset, or a timeout of the
// network, Linux reports EOF.
func (l *Link) note(err error) {
	if !errors.Is(err, os.ErrDeadlineExceeded) || !inWait() {
		l.failed.Store(true)
	}
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
// write. A busy backend would outlive its permit. So giveUp first cancels its query, or has
// Postgres end the backend if we know which one it is.
func (l *Link) giveUp() {
	if l.doubt() {
		return
	}
	if l.cancel.Load() != nil {
		l.sendCancel()
		select {
		case <-l.gone:
			return
		case <-time.After(drainAfterCancel):
		}
	}
	l.reset()
}

// finish gives the permit back. We wait for nothing any more.
func (l *Link) finish() {
	if !l.ended.CompareAndSwap(false, true) {
		return
	}
	_ = l.inner.Close()
	close(l.gone)
	l.cancel.Store(nil)
	if p := l.peer.Load(); p != nil {
		// suspect's timer keeps us alive for a while, and held would keep pgx's buffers
		p.held.Store(nil)
	}
	l.end()
}

func (l *Link) end() {
	if s := l.slot.Swap(nil); s != nil {
		s.Gone()
	}
}

var longAgo = time.Unix(1, 0)

// inBackground reports whether the caller is pgx's background reader.
func inBackground() bool { return calledBy("bgreader.(*BGReader).bgRead") }

// inWait reports whether the caller waits for a message or a notification: pgx does not close a
// connection on which none comes in time.
func inWait() bool {
	return calledBy("pgconn.(*PgConn).WaitForNotification", "pgconn.(*PgConn).ReceiveMessage")
}

// calledBy reports whether one of these functions called the caller's caller. It looks at the
// nearest 32.
func calledBy(functions ...string) bool {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs[:])])
	for {
		f, more := frames.Next()
		for _, name := range functions {
			if strings.HasSuffix(f.Function, name) {
				return true
			}
		}
		if !more {
			return false
		}
	}
}
