package socket

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Dialer dials for one attempt to connect, which can dial several times in a row: other hosts, or without TLS. The attempt holds at most one permit.
//
// The dial function of an attempt also serves the cancel requests of the connection that came of it, for as long as it
// lives, and even while the attempt goes on (pgx's clean-up after a failed host). Those take no permit. What tells them apart
// is the context: only the attempt's own descends from Begin's.
type Dialer struct {
	// Dial makes the socket.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Open takes a permit. Nil: sockets hold none, until somebody binds one.
	Open func(ctx context.Context) (*allotment.Conn, error)

	mu    sync.Mutex
	last  *Link
	ended bool
}

type attemptKey struct{}

// Begin marks the context of the attempt.
func (d *Dialer) Begin(ctx context.Context) context.Context {
	return context.WithValue(ctx, attemptKey{}, d)
}

// DialContext dials: with a permit if it is the attempt that asks, else plainly.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if owner, _ := ctx.Value(attemptKey{}).(*Dialer); owner != d {
		return d.Dial(ctx, network, addr)
	}
	d.mu.Lock()
	last, ended := d.last, d.ended
	d.mu.Unlock()
	if ended || (last != nil && !last.Closed()) {
		return d.Dial(ctx, network, addr) // somebody uses the attempt's context to cancel
	}
	if last != nil {
		// The backend of the last try must be gone before its permit can serve the next.
		select {
		case <-last.Gone():
		case <-ctx.Done():
			return nil, fmt.Errorf("passbuddy: waiting for the end of the previous try: %w", context.Cause(ctx))
		}
	}
	if d.Open == nil {
		nc, err := d.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return d.began(Wrap(nc)), nil
	}
	c, err := d.Open(ctx)
	if err != nil {
		return nil, err
	}
	nc, err := d.Dial(ctx, network, addr)
	if err != nil {
		c.Gone()
		return nil, err
	}
	s := d.began(Wrap(nc))
	s.life = c
	if !s.link.Bind(c) {
		s.Close()
		return nil, fmt.Errorf("passbuddy: while connecting: %w", semaphore.ErrLost)
	}
	return s, nil
}

func (d *Dialer) began(s *Conn) *Conn {
	d.mu.Lock()
	d.last = s.link
	d.mu.Unlock()
	return s
}

// End tells how the attempt ended and returns the socket that came of it. A socket that a failed
// attempt forgot is closed.
func (d *Dialer) End(err error) *Link {
	d.mu.Lock()
	last := d.last
	d.last, d.ended = nil, true
	d.mu.Unlock()
	if err != nil && last != nil {
		last.Close()
		return nil
	}
	return last
}
