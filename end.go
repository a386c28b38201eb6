package passbuddy

import (
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// This file ends connections. The words for it, here and in the files beside it:
//
//	return  a checkout ends, at database/sql's IsValid. PerConnection: the connection stays
//	        idle with its permit. PerCheckout: the next caller has the permit.
//	park    a checkout and its wrapper end. The connection goes to a caller that waits, or
//	        stays idle for parkTimeout, with its permit.
//	close   a connection ends, by the driver's own Close: it is bad, old or surplus, or its
//	        permit is recalled. The permit comes back when the backend is gone.
//	abort   a connection ends, by its socket or at its next operation: its lease is lost,
//	        or the semaphore is closed.
//
// Of an allotment's slot, Leave says that the close of its connection has begun, and Gone that the
// backend has ended: the permit is free. Between the two, awaitBackend waits.

// close closes the connection, once. Its permit comes back when the backend is gone. The caller
// must be the only one that may call inner. It does not wait for the driver's Close, which is I/O:
// database/sql may hold its lock on the DB.
func (ph *physical) close() {
	if ph.beginClose() {
		go func() {
			_ = ph.inner.Close() // as database/sql does on most of its paths
			ph.awaitBackend()
		}()
	}
}

// closeByWrapper is close for database/sql, which closes the wrapper of ph. If statements are left,
// the user may close them at any time, under the lock that database/sql holds for us now. Then the
// driver's Close is called here, as without PassBuddy.
func (ph *physical) closeByWrapper() error {
	if !ph.statements {
		ph.close()
		return nil
	}
	if !ph.beginClose() {
		return nil
	}
	evicted := ph.link != nil && ph.link.Closed()
	err := ph.inner.Close()
	go ph.awaitBackend()
	if evicted {
		return nil // we closed the socket: the driver's error is not its user's concern
	}
	return err
}

// beginClose prepares the close of the connection. It reports false if that has begun already.
func (ph *physical) beginClose() bool {
	if !ph.closeBegun.CompareAndSwap(false, true) {
		return false
	}
	if timer := ph.expiry.Load(); timer != nil {
		timer.Stop()
	}
	ph.hijacked = ph.taken()
	if !ph.hijacked {
		ph.cn.closeBegins()
	}
	if ph.link != nil {
		if ph.cn.cfg.Scope == PerCheckout && ph.slot != nil {
			// Its owner is done with it: whatever comes of the backend, the permit is the socket's.
			ph.link.Bind(ph.slot)
		}
		if !ph.hijacked { // else nothing ends but what the DB has of it
			ph.link.Leaving()
		}
	}
	return true
}

// cleanUpTimeout is how long pgx may go on with a connection that it has closed (pgconn's
// asyncClose).
const cleanUpTimeout = 15 * time.Second

// awaitBackend waits until the backend is gone, as well as that can be known.
func (ph *physical) awaitBackend() {
	if ph.link != nil {
		<-ph.link.Gone() // as late as its owner likes, where it was hijacked
	} else {
		if ph.pgx != nil {
			select {
			case <-ph.pgx.PgConn().CleanupDone():
			case <-time.After(cleanUpTimeout):
			}
		}
		time.Sleep(ph.cn.linger.duration())
	}
	if ph.slot != nil {
		ph.slot.Gone()
	}
	if ph.hijacked {
		ph.cn.done() // DB.Close did not wait for it
		return
	}
	ph.cn.closeEnds()
}

// closeIdle closes a connection that lies idle in database/sql's free list, or parked, and was made
// to leave. Its wrapper, if there is one, finds out at its next checkout.
func (ph *physical) closeIdle() {
	if ph.pinned == allotment.Free {
		ph.close()
		return
	}
	// The wrapper will call inner's Close, at its next checkout or with the DB; the backend ends
	// now.
	ph.broken.Store(true)
	_ = ph.link.Close()
}

// abort ends the connection at once if that can be done from outside. The lease of slot is lost.
func (ph *physical) abort(slot *allotment.Slot) {
	why := slot.AbortCause()
	if why == nil { // it lived without a permit. A caller may have it by now: it ends at its return
		if slot.LeaveUncounted() {
			ph.closeIdle()
		}
		return
	}
	// Before broken is set. A connection that is not broken has no use for it: see breakUnder.
	ph.why.Store(&why)
	if ph.cn.cfg.Scope == PerCheckout {
		if !ph.cn.idle.breakUnder(ph, slot) {
			return
		}
	} else {
		ph.broken.Store(true)
		if slot.LeaveIdle() {
			ph.close()
		}
	}
	if ph.link != nil {
		ph.link.AbortFor(why)
	}
}

// linger is how long a permit stays taken after the driver's Close, where nothing better tells that
// the backend is gone.
type linger struct {
	mu     sync.Mutex
	recent time.Duration // how long connecting took, the slowest of late
}

const (
	// minLinger is well above the 99th percentile (9ms) of the time from Terminate to the backend's
	// end, on a busy machine of two cores.
	minLinger = 15 * time.Millisecond
	maxLinger = 2 * time.Second
)

// took notes how long a connect took. That is several round trips and the start of a process;
// ending one is half a round trip and less work. So a long way, or a loaded server, which makes the
// one slow, makes the other less slow.
func (l *linger) took(d time.Duration) {
	l.mu.Lock()
	l.recent = max(d, l.recent*7/8)
	l.mu.Unlock()
}

func (l *linger) duration() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(minLinger+l.recent, maxLinger)
}
