package passbuddy

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// This file is about idle connections in PerConnection, as seen from outside their wrappers.
//
//   - Parked: idle, and database/sql does not know of it. Its wrapper was closed because a caller
//     waited, or never had it. A claim takes it over; else sweep closes it.
//   - Evicted: closed because its permit is needed elsewhere in the fleet.

const (
	// parkTimeout is how long a connection that database/sql does not know of lies idle for the
	// next caller.
	parkTimeout = time.Second
	// evictTimeout bounds a checkout that is made to be refused.
	evictTimeout = 50 * time.Millisecond
)

// park gives an inner connection that has no wrapper any more to a caller that waits, or keeps it a
// while for the next. It reports false if the connection must be closed instead.
func (cn *connector) park(slot *allotment.Slot) bool {
	if !slot.Park() {
		return false
	}
	cn.sweepLater()
	return true
}

// sweepLater is called when a connection may lie parked. After Close it sweeps at once.
func (cn *connector) sweepLater() {
	cn.mu.Lock()
	closed, arm := cn.isClosed(), !cn.sweeping
	cn.sweeping = true
	cn.mu.Unlock()
	if closed {
		cn.sweep(0)
	} else if arm {
		time.AfterFunc(parkTimeout, func() { cn.sweep(parkTimeout) })
	}
}

// sweep closes connections that have been parked for too long.
func (cn *connector) sweep(maxIdle time.Duration) {
	cn.mu.Lock()
	// Under mu, so that a park either is seen by this sweep, or sees that no sweep will follow.
	old, more := cn.a.SweepParked(maxIdle)
	cn.sweeping = more
	cn.mu.Unlock()
	for _, slot := range old {
		slot.Attached().(*physical).close()
	}
	if more {
		time.AfterFunc(maxIdle, func() { cn.sweep(maxIdle) })
	}
}

type evictKey struct{}

var errEvicting = errors.New("passbuddy: nothing is idle")

// Evict implements [allotment.Pool].
func (cn *connector) Evict() bool {
	if slot := cn.a.EvictIdle(); slot != nil {
		slot.Attached().(*physical).closeIdle()
		return true
	}
	return cn.evictThroughDB()
}

// evictThroughDB closes an idle connection that must not be touched from outside, because
// database/sql has prepared statements on it: only database/sql can close those first. It does so
// for a checkout that ResetSession refuses.
func (cn *connector) evictThroughDB() bool {
	db := cn.db.Load()
	if db == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), evictTimeout)
	defer cancel()
	e := &eviction{stop: cancel}
	cn.evictions.Add(1)
	defer cn.evictions.Add(-1)
	if c, err := db.Conn(context.WithValue(ctx, evictKey{}, e)); err == nil {
		_ = c.Close() // never used, so it holds nothing
	}
	return e.done.Load()
}

// eviction is passed to ResetSession through the context of evictThroughDB.
type eviction struct {
	stop context.CancelFunc // ends database/sql's retries
	done atomic.Bool
}

// refuseEviction reports whether this is a checkout by evictThroughDB.
func (c *conn) refuseEviction(ctx context.Context) bool {
	e, ok := ctx.Value(evictKey{}).(*eviction)
	if ok {
		e.stop()
		e.done.Store(true)
	}
	return ok
}
