package socket

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	// tryGrace is how long the next dial of an attempt waits for the end of the last try's backend
	// before it acts. A backend ends within some milliseconds.
	tryGrace = 50 * time.Millisecond
	// extraTimeout bounds the request for a permit for the last try, while the next one waits.
	extraTimeout = 250 * time.Millisecond
)

// Dialer dials for one attempt to connect, which can dial several times: other hosts, with TLS and
// without. An attempt has one permit, and its final socket gets it. Earlier sockets of the attempt
// are failed tries:
//
//	open ------------------------> closed, draining --------------------> gone
//	  |       by the driver          |                 EOF
//	  |                              | the driver dials again, no end within tryGrace
//	  |                              +--> with a permit of its own, if the fleet has one; draining
//	  |                              +--> else waited for, if the server has sent data: for a
//	  |                              |    quarter of the time that the dial has left
//	  |                              +--> else reset, and gone: see Link.Abandon
//	  +-- forgotten by the driver (lib/pq with sslmode=prefer): closed by End
//
// The dial function of an attempt also serves the cancel requests of the resulting connection, for
// as long as that lives. It even serves some during the attempt (pgx's clean-up after a failed
// host). Cancel requests take no permit. The context tells the two apart: only the attempt's own
// context descends from Begin's.
type Dialer struct {
	// Dial makes the socket.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Open takes a permit for each try. Nil: the attempt already has its permit and binds it after
	// End, or has none.
	Open func(ctx context.Context) (*allotment.Slot, error)
	// OpenExtra takes one more permit if the fleet has one to spare, else it returns nil. If Open
	// and OpenExtra are nil, sockets hold no permits.
	OpenExtra func(ctx context.Context) *allotment.Slot

	mu sync.Mutex
	// sockets whose backends may live under the attempt's permit, the last one last; guarded by mu
	tries []*Link
	ended bool // guarded by mu
}

type attemptKey struct{}

// Begin marks the context of the attempt.
func (d *Dialer) Begin(ctx context.Context) context.Context {
	return context.WithValue(ctx, attemptKey{}, d)
}

// DialContext dials for the attempt if ctx is the attempt's, else plainly.
//
// If each try takes a permit of its own (Open), an open try is in use, because pgx closes each try
// before the next. So a second socket with the attempt's context belongs to a cancel request and
// takes no permit. A driver that takes no permits here may have forgotten its last socket. We then
// follow the next socket like any other, and End finds out which one the driver kept.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if owner, _ := ctx.Value(attemptKey{}).(*Dialer); owner != d {
		return d.Dial(ctx, network, addr)
	}
	d.mu.Lock()
	plain := d.ended || d.Open != nil && slices.ContainsFunc(d.tries, func(l *Link) bool {
		return !l.Closed()
	})
	d.mu.Unlock()
	if plain {
		return d.Dial(ctx, network, addr)
	}
	for {
		c, err := d.makeRoom(ctx)
		if err == nil && c == nil && d.Open != nil {
			c, err = d.Open(ctx)
		}
		if err != nil {
			return nil, err
		}
		nc, err := d.Dial(ctx, network, addr)
		if err != nil {
			if c != nil {
				c.Gone()
			}
			return nil, err
		}
		s := Wrap(nc)
		d.mu.Lock()
		d.tries = append(d.tries, s.link)
		d.mu.Unlock()
		if c == nil {
			return s, nil
		}
		s.slot = c
		if s.link.Bind(c) {
			return s, nil
		}
		// The permit was lost during the dial. Nothing was sent over the socket yet, so the attempt
		// asks again, once makeRoom has ended this socket.
		s.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("passbuddy: while connecting: %w (%w)", semaphore.ErrLost,
				context.Cause(ctx))
		}
	}
}

// makeRoom makes sure that no closed try still uses the permit of the next one. With Open it may
// return that permit.
func (d *Dialer) makeRoom(ctx context.Context) (next *allotment.Slot, err error) {
	if d.Open == nil && d.OpenExtra == nil {
		return nil, nil // these sockets hold no permits
	}
	d.mu.Lock()
	closed := slices.DeleteFunc(slices.Clone(d.tries), func(l *Link) bool { return !l.Closed() })
	d.mu.Unlock()
	for _, l := range closed {
		c, err := d.settle(ctx, l)
		if err != nil {
			return nil, err
		}
		next = c
		d.mu.Lock()
		d.tries = slices.DeleteFunc(d.tries, func(other *Link) bool { return other == l })
		d.mu.Unlock()
	}
	return next, nil
}

// settle takes l, which is closed, out of the way of the attempt's next socket.
func (d *Dialer) settle(ctx context.Context, l *Link) (next *allotment.Slot, err error) {
	if gone, err := waitGone(ctx, l, tryGrace); gone || err != nil {
		return nil, err
	}
	if d.OpenExtra != nil {
		short, cancel := context.WithTimeout(ctx, extraTimeout)
		c := d.OpenExtra(short)
		cancel()
		switch {
		case c == nil:
		case d.Open != nil:
			return c, nil // l keeps its permit
		default:
			l.Bind(c)
			return nil, nil
		}
	}
	if l.spoke() {
		most := drainTimeout + drainAfterCancel // by then its drain has ended
		if deadline, ok := ctx.Deadline(); ok {
			most = time.Until(deadline) / 4
		}
		if gone, err := waitGone(ctx, l, most); gone || err != nil {
			return nil, err
		}
	}
	l.Abandon()
	return nil, nil
}

func waitGone(ctx context.Context, l *Link, most time.Duration) (gone bool, err error) {
	select {
	case <-l.Gone():
		return true, nil
	case <-time.After(most):
		return false, nil
	case <-ctx.Done():
		return false, fmt.Errorf("passbuddy: waiting for the end of the previous try: %w",
			context.Cause(ctx))
	}
}

// End ends the attempt, and returns its final socket: own if that is one of the attempt's, or else
// the last socket that is still open. End closes the other sockets that the driver left open.
func (d *Dialer) End(own *Link) *Link {
	tries := d.end()
	if !slices.Contains(tries, own) {
		own = nil // not of this attempt: the driver got its connection elsewhere
	}
	for i := len(tries) - 1; own == nil && i >= 0; i-- {
		if !tries[i].Closed() {
			own = tries[i]
		}
	}
	for _, l := range tries {
		if l != own {
			l.Close()
		}
	}
	return own
}

// Fail ends a failed attempt and closes the sockets that it left open. It returns the sockets whose
// backends may live under the attempt's permit.
func (d *Dialer) Fail() []*Link {
	tries := d.end()
	for _, l := range tries {
		l.Close()
	}
	return tries
}

// Last returns the socket that the attempt dialled last, or nil.
func (d *Dialer) Last() *Link {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.tries) == 0 {
		return nil
	}
	return d.tries[len(d.tries)-1]
}

func (d *Dialer) end() []*Link {
	d.mu.Lock()
	defer d.mu.Unlock()
	tries := d.tries
	d.tries, d.ended = nil, true
	return tries
}
