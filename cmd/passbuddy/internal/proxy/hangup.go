package proxy

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"
)

// errHungUp says that the client has closed its connection.
var errHungUp = errors.New("the client has gone")

// maxEarly is how much of what a client sends before it has an answer is read. Clients that wait
// for an answer send nothing.
const maxEarly = 16 << 10

// hangUp watches a client that waits, and finds out when it leaves.
type hangUp struct {
	client net.Conn
	cancel context.CancelCauseFunc
	early  []byte // what it has sent; read after done
	gone   atomic.Bool
	done   chan struct{}
}

// watch returns a context that ends when the client leaves. stop must follow.
func watch(ctx context.Context, client net.Conn) (context.Context, *hangUp) {
	ctx, cancel := context.WithCancelCause(ctx)
	h := &hangUp{client: client, cancel: cancel, done: make(chan struct{})}
	go h.run()
	return ctx, h
}

func (h *hangUp) run() {
	defer close(h.done)
	b := make([]byte, 512)
	for len(h.early) < maxEarly {
		n, err := h.client.Read(b)
		h.early = append(h.early, b[:n]...)
		if err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() { // else it is stop's
				h.gone.Store(true)
				h.cancel(errHungUp)
			}
			return
		}
	}
}

// stop ends the watch, and returns what the client has sent meanwhile, and whether it has left.
func (h *hangUp) stop() (early []byte, gone bool) {
	_ = h.client.SetReadDeadline(longAgo)
	<-h.done
	_ = h.client.SetReadDeadline(time.Time{})
	h.cancel(nil)
	return h.early, h.gone.Load()
}
