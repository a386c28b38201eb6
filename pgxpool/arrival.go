package pgxpool

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A turn that comes with a return comes just before the connection is idle in the pool, because
// TraceRelease runs first. A caller that enters the pool too early finds nothing idle and opens a
// connection, for which the one that it was meant to have must be closed. So it waits until there
// are as many idle connections as arrivals up to it that are still on their way. To see that one
// connection is idle is not enough, for two callers can see the same one.
//
// The count is a hint. Callers that did not wait for their turn are not in it. A caller that is
// overtaken takes the overtaker's connection when that is idle. A wrong count costs a reconnect, or
// the moment that letReturn waits at most.

// arrivals counts the callers whose turn came with a return: those that have come, and those of
// them that are through, because they have a connection, open one, or gave up.
type arrivals struct {
	come, through atomic.Int64
}

// arrive waits for the connection that a turn came with.
func (p *pool) arrive(ctx context.Context, pool *pgxpool.Pool) context.Context {
	c := p.withCheckout(ctx)
	c.arriving.Store(true)
	place := p.arrivals.come.Add(1)
	letReturn(func() bool { return p.arrivals.served(place, pool.Stat().IdleConns()) })
	return c
}

// served reports whether, of so many idle connections, one is for the caller that came in that
// place.
func (a *arrivals) served(place int64, idle int32) bool {
	return int64(idle) >= place-a.through.Load()
}

// endArrival ends what arrive began. It is idempotent. A caller that has to open a connection
// counts as through when that begins; otherwise the callers behind it would wait for a whole
// connect.
func (c *checkout) endArrival() {
	if c != nil && c.arriving.CompareAndSwap(true, false) {
		c.pool.arrivals.through.Add(1)
	}
}

// letReturn waits a moment until the connection is there. Mostly some yields will do. Where the
// returning thread has lost its processor it takes a time slice, which is still less than a
// reconnect.
func letReturn(there func() bool) {
	const (
		yields = 50
		pauses = 40
		pause  = 100 * time.Microsecond
	)
	for i := range yields + pauses {
		if there() {
			return
		}
		if i < yields {
			runtime.Gosched()
		} else {
			time.Sleep(pause)
		}
	}
}
