package passbuddy

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/socket"
)

// dial opens a connection under slot, which may be nil. If that fails, slot is given back as soon
// as no backend is left of the attempt.
func (cn *connector) dial(ctx context.Context, slot *allotment.Slot) (ph *physical, err error) {
	at := new(connectAttempt)
	if slot != nil {
		at.dialer.OpenExtra = cn.a.OpenExtra
	}
	start := time.Now()
	defer func() {
		if ph == nil { // also if the driver panics
			if slot != nil {
				slot.Leave()
			}
			cn.begin()
			at.failed(func() {
				if slot != nil {
					slot.Gone()
				}
				cn.done()
			})
		}
	}()
	if cn.isClosed() {
		return nil, allotment.ErrPoolClosed
	}
	inner, err := cn.inner.Connect(withAttempt(ctx, at))
	if err != nil {
		return nil, err
	}
	if inner == nil {
		return nil, errors.New(
			"passbuddy: the driver's Connect returned neither a connection nor an error")
	}
	cn.linger.took(time.Since(start))
	ph = newPhysical(cn, inner, at.succeeded(inner))
	if ph.link != nil && slot != nil {
		ph.link.Bind(slot) // if its lease is lost by now, Attach says so again
	}
	ph.slot = slot
	cn.shapeSeen.Store(1 + uint32(ph.shape))
	cn.begin()
	return ph, nil
}

// connectAttempt follows the sockets that the driver dials during one Connect.
type connectAttempt struct {
	dialer socket.Dialer
	mu     sync.Mutex // guards the making of dialer.Dial
}

type attemptKey struct{}

// withAttempt returns the context by which the driver's dial function finds the attempt.
func withAttempt(ctx context.Context, at *connectAttempt) context.Context {
	return context.WithValue(at.dialer.Begin(ctx), attemptKey{}, at)
}

// dial is next for a driver whose context descends from withAttempt.
func (at *connectAttempt) dial(
	ctx context.Context, next dialFunc, network, address string,
) (net.Conn, error) {
	at.mu.Lock()
	if at.dialer.Dial == nil {
		at.dialer.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			// Without the attempt: next may be a Dialer too.
			return next(context.WithValue(ctx, attemptKey{}, nil), network, address)
		}
	}
	at.mu.Unlock()
	return at.dialer.DialContext(ctx, network, address)
}

// succeeded ends an attempt that inner came of. It returns inner's socket, or nil.
func (at *connectAttempt) succeeded(inner driver.Conn) *socket.Link {
	var own *socket.Link
	if c := pgxConn(inner); c != nil {
		own = socket.Of(c.PgConn().Conn())
	}
	return at.dialer.End(own)
}

// failed ends an attempt that nothing came of. It closes the sockets that the attempt left open:
// stdlib's connector does not do that when its AfterConnect fails. It calls then when no backend is
// left.
func (at *connectAttempt) failed(then func()) {
	tries := at.dialer.Fail()
	if len(tries) == 0 {
		then()
		return
	}
	go func() {
		for _, l := range tries {
			<-l.Gone()
		}
		then()
	}()
}
