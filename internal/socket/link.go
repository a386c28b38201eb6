package socket

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"time"
	"weak"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

const (
	// drainMost is how long a closed socket waits for the server's end before it takes stronger measures. As long
	// as pgx gives its own clean-up.
	drainMost = 15 * time.Second
	// drainBlind is drainMost for a socket that cannot be half-closed: where no Terminate was sent, the server only learns
	// of the end by the real close.
	drainBlind = 2 * time.Second
	// drainAfterCancel is how long the server has to answer the last cancel request.
	drainAfterCancel = 5 * time.Second

	cancelMost      = time.Second
	fenceFirst      = 10 * time.Millisecond // an idle backend ends by itself within this
	fenceAgainAtMax = time.Second
)

// Link is the part of a wrapped socket that outlives the wrapper: what holds the permit and ends the connection. It must not
// point to the [Conn], which would then never be collected.
type Link struct {
	inner  net.Conn
	conn   atomic.Pointer[allotment.Conn]
	cancel atomic.Pointer[func(context.Context) error]
	closed atomic.Bool
	gone   chan struct{}
}

// Conn is what ends with the socket, or nil.
func (l *Link) Conn() *allotment.Conn { return l.conn.Load() }

// Bind lets c end with the socket. It reports false if the lease of c is lost already; the caller must then Fence.
func (l *Link) Bind(c *allotment.Conn) bool {
	ok := c.Attach(l)
	l.conn.Store(c)
	if l.closed.Load() {
		// Closed in the meantime. Close read conn before or after our Store; Leave and Gone can both be repeated.
		c.Leave()
		select {
		case <-l.gone:
			l.end()
		default:
		}
	}
	return ok
}

// Unbind undoes Bind and returns what was bound, or nil: the socket goes on without.
func (l *Link) Unbind() *allotment.Conn { return l.conn.Swap(nil) }

// SetCancel sets how to stop what the server is running for this connection. It must be safe to call
// at any time, also after the close, and must not keep the [Conn] alive.
func (l *Link) SetCancel(cancel func(context.Context) error) { l.cancel.Store(&cancel) }

// CancelBy is SetCancel with pc's CancelRequest, which only reads what does not change after the connect. pc is not kept alive: one that is
// dropped must be collected, and closed.
func (l *Link) CancelBy(pc *pgconn.PgConn) {
	w := weak.Make(pc)
	l.SetCancel(func(ctx context.Context) error {
		if pc := w.Value(); pc != nil {
			return pc.CancelRequest(ctx)
		}
		return nil
	})
}

// Closed reports whether Close was called.
func (l *Link) Closed() bool { return l.closed.Load() }

// Gone is closed when the server's backend has ended, as far as can be known.
func (l *Link) Gone() <-chan struct{} { return l.gone }

// Close ends the connection without waiting: it tells the allotment, and leaves the rest to the background.
// The second and later calls do nothing.
func (l *Link) Close() error {
	if !l.closed.CompareAndSwap(false, true) {
		return nil
	}
	if c := l.conn.Load(); c != nil {
		c.Leave()
	}
	go l.drain()
	return nil
}

// Fence is Close for a connection that must not live on: if its backend is busy, and so does not notice that
// its client has gone, it is cancelled. Fence returns when the backend has ended, or after drainMost and some seconds.
func (l *Link) Fence() {
	l.Close()
	timer := time.NewTimer(fenceFirst)
	defer timer.Stop()
	for pause := fenceFirst; ; {
		select {
		case <-l.gone:
			return
		case <-timer.C:
		}
		// Again and again: a cancel that arrives between two statements of a batch stops neither.
		l.sendCancel()
		pause = min(2*pause, fenceAgainAtMax)
		timer.Reset(pause)
	}
}

func (l *Link) sendCancel() {
	cancel := l.cancel.Load()
	if cancel == nil {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), cancelMost)
	defer stop()
	_ = (*cancel)(ctx) // whether it worked shows at the socket
}

// drain reads until the server has closed its end.
func (l *Link) drain() {
	// Wake whoever still reads or writes, and take over: reads of one socket are served one after the other, so this Read
	// returns when an earlier one has. Deadlines that the driver left behind end here too; the wrapper
	// lets none through any more.
	if l.inner.SetDeadline(longAgo) == nil {
		var b [1]byte
		_, _ = l.inner.Read(b[:])
		_ = l.inner.SetDeadline(time.Time{})
	}
	most := drainBlind
	if half, ok := l.inner.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		most = drainMost
	}
	bound := time.AfterFunc(most, l.giveUp)
	_, _ = io.Copy(io.Discard, l.inner)
	bound.Stop()
	_ = l.inner.Close()
	close(l.gone)
	l.cancel.Store(nil)
	l.end()
}

// giveUp ends a drain that takes too long: the network is dead, or the backend is busy and does not
// write. In the latter case it would outlive its permit, so it is cancelled first.
func (l *Link) giveUp() {
	l.sendCancel()
	timer := time.NewTimer(drainAfterCancel)
	defer timer.Stop()
	select {
	case <-l.gone:
	case <-timer.C:
		_ = l.inner.Close()
	}
}

func (l *Link) end() {
	if c := l.conn.Swap(nil); c != nil {
		c.Gone()
	}
}

var longAgo = time.Unix(1, 0)
