package pgxpool

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A turn that comes with a return comes just before the connection is idle in the pool (TraceRelease runs first). Who enters the pool
// too early finds nothing idle and opens a connection, for which the one that he was meant to have must be closed. So he waits until there is one for him
// and for each who arrived before him and is still on his way: to see that some connection is idle is not enough, for two can see the same.
//
// The count is a hint. Callers who did not wait for their turn are not in it, and one who is overtaken takes the overtaker's connection when
// that is idle: what it gets wrong costs a reconnect, or the moment that letReturn waits at most.

// arrivals counts those whose turn came with a return: who has come, and who of them has a connection, opens one, or gave up.
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

// served reports whether, of so many idle connections, one is for him who came in that place.
func (a *arrivals) served(place int64, idle int32) bool {
	return int64(idle) >= place-a.through.Load()
}

// end ends what arrive began. Twice is once: who had to open one is through when that begins, lest others wait for the time of a connect.
func (a *arrival) end() {
	if !a.over.Swap(true) {
		a.of.through.Add(1)
	}
}

// letReturn waits a moment until the connection is there. Mostly some yields will do; where the returning thread has lost its processor it takes a
// time slice, which is still less than a reconnect.
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
