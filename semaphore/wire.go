package semaphore

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"
)

// A caller who finds no flight under way carries his own requests to Redis, for that saves two changes of goroutine, which on a
// small machine cost as much as the round trip. But go-redis waits for a reply whatever becomes of the caller's context, and
// a stalled Redis would hold him for its ReadTimeout. So when his context ends, Redis has cutGrace and four round trips left to
// answer; then the connection is cut, the call fails, and what became of it is as unknown as after any lost reply.
const cutGrace = 10 * time.Millisecond

// wires are the connections of one client.
type wires struct {
	mu     sync.Mutex
	open   map[*wire]struct{}
	dials  map[int]context.CancelFunc // under way
	dialed int
}

// begin notes a dial, so that it can be cut, too. What it returns ends that.
func (ws *wires) begin(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.dialed++
	n := ws.dialed
	ws.dials[n] = cancel
	return ctx, func() {
		ws.mu.Lock()
		delete(ws.dials, n)
		ws.mu.Unlock()
		cancel()
	}
}

// dialer is dial, with its connections kept in ws.
func (ws *wires) dialer(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, end := ws.begin(ctx)
		defer end()
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		w := &wire{Conn: c, ws: ws}
		ws.mu.Lock()
		ws.open[w] = struct{}{}
		ws.mu.Unlock()
		if sys, ok := c.(syscall.Conn); ok {
			return sysWire{w, sys}, nil
		}
		return w, nil
	}
}

// cut ends what is being read. Its connections are of no use afterwards.
func (ws *wires) cut() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, cancel := range ws.dials {
		cancel()
	}
	for w := range ws.open {
		w.mu.Lock()
		w.dead = true
		_ = w.Conn.SetDeadline(time.Unix(1, 0)) // fails only on one that is closed
		w.mu.Unlock()
	}
}

// wire is a connection that can be cut.
type wire struct {
	net.Conn
	ws *wires

	mu   sync.Mutex // orders a cut and the deadlines that go-redis sets before each read and write
	dead bool
}

func (w *wire) SetDeadline(t time.Time) error      { return w.set(t, w.Conn.SetDeadline) }
func (w *wire) SetReadDeadline(t time.Time) error  { return w.set(t, w.Conn.SetReadDeadline) }
func (w *wire) SetWriteDeadline(t time.Time) error { return w.set(t, w.Conn.SetWriteDeadline) }

func (w *wire) set(t time.Time, set func(time.Time) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return nil // the deadline that it has is past
	}
	return set(t)
}

func (w *wire) Close() error {
	w.ws.mu.Lock()
	delete(w.ws.open, w)
	w.ws.mu.Unlock()
	return w.Conn.Close()
}

// sysWire is a wire on which go-redis can look whether it is still alive while it lies idle.
type sysWire struct {
	*wire
	syscall.Conn
}
