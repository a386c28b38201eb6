package pgxpool

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A turn that comes with a return comes just before the connection is idle in the pool:
// TraceRelease runs first. A caller that enters the pool too early finds nothing idle and opens a
// connection. For that one, the connection that was meant for the caller must be closed. So it
// waits until one is idle for it, and one for each caller that arrived before it and is still on
// its way. To see that some connection is idle is not enough, for two can see the same.
//
// The count is a hint. Callers that did not wait for their turn are not in it. A caller that is
// overtaken takes the overtaker's connection when that is idle. What the count gets wrong costs a
// reconnect, or the moment that letReturn waits at most.

// arrivals counts the callers whose turn came with a return: how many have come, and how many of
// them have a connection, open one, or gave up.
type arrivals struct {
	come, through atomic.Int64
}

// arrival is the context of one of them.
type arrival struct {
	context.Context
	of   *arrivals
	over atomic.Bool
}

type arrivalKey struct{}

func (a *arrival) Value(key any) any {
	if key == (arrivalKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// arrive waits for the connection that a turn came with.
func (a *arrivals) arrive(ctx context.Context, pool *pgxpool.Pool) context.Context {
	place := a.come.Add(1)
	letReturn(func() bool { return a.served(place, pool.Stat().IdleConns()) })
	return &arrival{Context: ctx, of: a}
}

// served reports whether, of so many idle connections, one is for the caller that came in that
// place.
func (a *arrivals) served(place int64, idle int32) bool {
	return int64(idle) >= place-a.through.Load()
}

// end ends what arrive began. It is idempotent. A caller that had to open a connection is through
// when that begins; otherwise the callers behind it would wait for the time of a connect.
func (a *arrival) end() {
	if !a.over.Swap(true) {
		a.of.through.Add(1)
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
