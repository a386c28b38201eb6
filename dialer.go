package passbuddy

import (
	"context"
	"database/sql/driver"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/socket"
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// A Dialer lets permits follow the sockets of a driver that can be given a dial function and passes it the context of Connect: the permit
// is then given back when the server has closed its end, and a connection whose lease is lost can be ended while it is in use. It is not needed
// for pgx, where PassBuddy installs its own.
//
// For lib/pq:
//
//	c, err := pq.NewConnector(dsn)
//	...
//	c.Dialer(&passbuddy.Dialer{})
//	db := passbuddy.OpenDB(c, sem, passbuddy.Config{})
//
// For pgx, where it was wrapped by others before PassBuddy sees it: cfg.DialFunc = (&passbuddy.Dialer{Next: cfg.DialFunc}).DialContext.
//
// A driver may dial several times in one Connect, and forget sockets that it has no use for: the
// permit is that of the one it keeps, and the others are closed.
//
// On Linux the sockets have TCP_USER_TIMEOUT set to a minute, so that a peer that acknowledges
// nothing is found out. A Next that sets one of its own, or turns keepalive off, has its way.
//
// Dials that are not part of a Connect, such as those of cancel requests, are passed on unchanged. The zero value is ready to use, for
// any number of connections.
type Dialer struct {
	// Next makes the socket. Default a zero net.Dialer's DialContext.
	Next func(ctx context.Context, network, address string) (net.Conn, error)
}

// DialContext dials.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	next := d.Next
	if next == nil {
		next = new(net.Dialer).DialContext
	}
	if at, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		return at.dial(ctx, next, network, address)
	}
	return next(ctx, network, address)
}

// Dial is DialContext without a context, for drivers that want such a method. Permits do not follow what it dials.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialTimeout is Dial with a bound.
func (d *Dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// attempt follows the sockets that the driver dials during one Connect.
type attempt struct {
	dialer socket.Dialer
	mu     sync.Mutex // guards the making of dialer.Dial
}

type attemptKey struct{}

func newAttempt() *attempt { return &attempt{} }

// mark returns the context by which the driver's dial function finds the attempt.
func (at *attempt) mark(ctx context.Context) context.Context {
	return context.WithValue(at.dialer.Begin(ctx), attemptKey{}, at)
}

// dial is next for a driver whose context descends from mark.
func (at *attempt) dial(ctx context.Context, next dialFunc, network, address string) (net.Conn, error) {
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

// finish ends a successful attempt, of which inner came. It returns its socket, or nil.
func (at *attempt) finish(inner driver.Conn) *socket.Link {
	var own *socket.Link
	if c, ok := inner.(interface{ Conn() *pgx.Conn }); ok {
		if c := c.Conn(); c != nil {
			own = socket.Of(c.PgConn().Conn())
		}
	}
	return at.dialer.End(own)
}

// abandon ends a failed one: what it left open is closed (stdlib's connector does not, when its AfterConnect
// fails), and then is called when no backend is left.
func (at *attempt) abandon(then func()) {
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
