package passbuddy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// idleList is the pool of PerCheckout. database/sql keeps empty wrappers; the connections lie here, and a
// caller takes one once it has its permit.
//
// A physical connection is in exactly one of four places, so it never has two owners:
//
//	        take                       put
//	list ----------> checked-out wrapper -------> list
//	                     |   ^
//	             IsValid |   | ResetSession
//	                     v   |
//	              wrapper at rest, pinned by a statement
//
// The fourth is its end: each removal from the list is by take or for physical.end. Both put and take
// decide under mu. The wrapper that holds the connection calls put, and has forgotten it before: no
// operation of database/sql can come between, since it calls one method of a wrapper at a time.
//
// Open connections follow the permits, not the callers. put comes before the permit is given back
// (returnCheckout), and take after a permit is held. So a caller that finds the list empty knows that
// each connection outside it is pinned, ending, or under another permit, and may dial.
type idleList struct {
	waiting atomic.Int32 // callers that have asked for a permit and do not have it

	mu sync.Mutex

	// Guarded by mu. So is the field slot of a physical connection, see cover.
	free     []*physical // the one returned last is the last
	shells   int         // wrappers that database/sql has and callers inside Connect
	resting  int         // of those: returned and empty, in database/sql's free list
	low      int         // the smallest surplus since watching began
	watching bool        // a trim is due
	closed   bool

	// maxAge is what we know of SetConnMaxLifetime, or 0. database/sql applies the limit to wrappers and
	// does not tell it. A wrapper that is closed for its age shows that the limit is at most that age;
	// a wrapper that is checked out at a greater age shows that the limit has changed since.
	maxAge time.Duration
}

// opening counts a wrapper.
func (l *idleList) opening() {
	l.mu.Lock()
	l.shells++
	l.mu.Unlock()
}

// put takes ph back. It reports false if ph must be ended instead; ph is then still the caller's, under
// its permit. c, if not nil, is ph's wrapper and lies at rest from now on.
//
// A lease that is lost meanwhile either breaks ph first (see breaks), and ph is refused here, or finds
// that ph is not under that permit any more. A broken connection is never in the list.
func (l *idleList) put(c *conn, ph *physical) (kept bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept = !l.closed && !ph.broken.Load() && !l.tooOld(ph)
	if kept {
		ph.slot = nil
		l.free = append(l.free, ph)
	}
	if c != nil {
		l.rest(c)
	}
	l.watch()
	return kept
}

// take removes the connection that was returned last and puts it under slot, or returns nil.
func (l *idleList) take(slot *allotment.Slot) (ph *physical) {
	var old []*physical
	l.mu.Lock()
	for ph == nil && len(l.free) > 0 {
		n := len(l.free) - 1
		last := l.free[n]
		l.free[n] = nil
		l.free = l.free[:n]
		if l.tooOld(last) {
			old = append(old, last)
			continue
		}
		last.slot = slot
		ph = last
	}
	l.watch()
	l.mu.Unlock()
	endAll(old)
	return ph
}

// cover puts ph, which is in its owner's hands, under slot; nil is for no permit.
func (l *idleList) cover(ph *physical, slot *allotment.Slot) {
	l.mu.Lock()
	ph.slot = slot
	l.mu.Unlock()
}

// breaks marks ph as broken if it is under slot still. The news of a lost lease comes from outside, and
// ph may have been returned and lent again since, under another permit: then it is left alone.
func (l *idleList) breaks(ph *physical, slot *allotment.Slot) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ph.slot != slot {
		return false
	}
	ph.broken.Store(true)
	return true
}

// atRest notes that c was returned while it was empty.
func (l *idleList) atRest(c *conn) {
	l.mu.Lock()
	l.rest(c)
	l.watch()
	l.mu.Unlock()
}

// checkedOut notes that c is in use.
func (l *idleList) checkedOut(c *conn) {
	l.mu.Lock()
	if c.resting {
		c.resting = false
		l.resting--
		if l.maxAge > 0 && time.Since(c.born) > l.maxAge {
			l.maxAge = 0
		}
		l.watch()
	}
	l.mu.Unlock()
}

// shellClosed counts c out, and ends what is one too many now. c is nil for a Connect that failed.
// aged tells that database/sql closes c because of its age.
func (l *idleList) shellClosed(c *conn, aged bool) {
	var old []*physical
	l.mu.Lock()
	l.shells--
	if c != nil && c.resting {
		c.resting = false
		l.resting--
	}
	if aged {
		if age := time.Since(c.born); l.maxAge == 0 || age < l.maxAge {
			l.maxAge = age
		}
		kept := l.free[:0]
		for _, ph := range l.free {
			if l.tooOld(ph) {
				old = append(old, ph)
			} else {
				kept = append(kept, ph)
			}
		}
		clear(l.free[len(kept):])
		l.free = kept
	}
	old = append(old, l.oldest(len(l.free)-l.shells)...)
	l.watch()
	l.mu.Unlock()
	endAll(old)
}

// close ends all that is idle. Nothing is kept from now on.
func (l *idleList) close() {
	l.mu.Lock()
	l.closed = true
	old := l.oldest(len(l.free))
	l.mu.Unlock()
	endAll(old)
}

// rest, tooOld, oldest and watch need mu.

func (l *idleList) rest(c *conn) {
	if !c.resting {
		c.resting = true
		l.resting++
	}
}

func (l *idleList) tooOld(ph *physical) bool {
	return l.maxAge > 0 && time.Since(ph.opened) >= l.maxAge
}

// oldest removes the n connections that have been idle for longest.
func (l *idleList) oldest(n int) []*physical {
	if n <= 0 {
		return nil
	}
	old := append([]*physical(nil), l.free[:n]...)
	kept := copy(l.free, l.free[n:])
	clear(l.free[kept:])
	l.free = l.free[:kept]
	return old
}

// watch looks after the surplus: idle connections without a resting wrapper. SetMaxIdleConns and
// SetConnMaxIdleTime say how many wrappers rest, so they say how many connections may lie idle. But while
// callers wait for permits, every idle connection is surplus: the permits do not suffice for it.
// The part of the surplus that nobody took for parkedMost is ended, longest idle first.
func (l *idleList) watch() {
	surplus := len(l.free)
	if l.waiting.Load() == 0 {
		surplus -= l.resting
	}
	l.low = min(l.low, surplus)
	if surplus > 0 && !l.watching {
		l.watching, l.low = true, surplus
		time.AfterFunc(parkedMost, l.trim)
	}
}

func (l *idleList) trim() {
	l.mu.Lock()
	old := l.oldest(min(l.low, len(l.free)))
	l.watching = false
	l.watch()
	l.mu.Unlock()
	endAll(old)
}

// endAll ends connections that were removed from the list. database/sql may hold its lock.
func endAll(old []*physical) {
	for _, ph := range old {
		_ = ph.end(inBackground)
	}
}
