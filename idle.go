package passbuddy

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// idleList is the pool of PerCheckout. database/sql keeps empty wrappers; the connections lie here,
// and a caller takes one once it has its permit.
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
// The fourth is its end: each removal from the list is by take or for physical.close. Both put and
// take decide under mu. The wrapper that holds the connection calls put, and has forgotten it
// before: no operation of database/sql can come between, since it calls one method of a wrapper at
// a time.
//
// Open connections follow the permits, not the callers. put comes before the permit is given back
// (returnCheckout), and take after a permit is held. So a caller that finds the list empty knows
// that each connection outside it is pinned, being closed, or under another permit: it may dial.
type idleList struct {
	waiting atomic.Int32 // callers that have asked for a permit and do not have it

	mu sync.Mutex

	// Guarded by mu. The field slot of a physical connection is, too: see setSlot.
	free       []*physical // the one returned last is the last
	wrappers   int         // those that database/sql has, and callers inside Connect
	resting    int         // of those: returned and empty, in database/sql's free list
	pinned     int         // connections that lie idle in their wrappers, at rest
	minSurplus int         // since watching began
	watching   bool        // a trim is due
	closed     bool

	// maxAge is the upper bound that we know of SetConnMaxLifetime, or 0. database/sql applies the
	// limit to wrappers and does not tell it. A wrapper that is closed for its age shows that the
	// limit is at most that age. A wrapper that is checked out at a greater age shows that the
	// limit has changed since.
	maxAge time.Duration
}

// wrapperOpened counts a wrapper.
func (l *idleList) wrapperOpened() {
	l.mu.Lock()
	l.wrappers++
	l.mu.Unlock()
}

// put takes ph back. It reports false if ph must be closed instead. ph is then still the caller's,
// under its permit. If c is not nil, it is ph's wrapper, and lies at rest from now on.
//
// A lease that is lost meanwhile either breaks ph first (see breakUnder), and ph is refused here,
// or finds that ph is not under that permit any more. A broken connection is never in the list.
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
	closeAll(old)
	return ph
}

// setSlot puts ph, which is in its owner's hands, under slot; nil is for no permit.
func (l *idleList) setSlot(ph *physical, slot *allotment.Slot) {
	l.mu.Lock()
	ph.slot = slot
	l.mu.Unlock()
}

// countPinned counts n more connections that lie idle in their wrappers.
func (l *idleList) countPinned(n int) {
	l.mu.Lock()
	l.pinned += n
	l.mu.Unlock()
}

// breakUnder marks ph as broken if it is still under slot. The news of a lost lease comes from
// outside, and ph may have been returned and lent again since, under another permit: then ph is
// left alone.
func (l *idleList) breakUnder(ph *physical, slot *allotment.Slot) bool {
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

// wrapperClosed counts c out, and closes the connection that is now one too many. It is called with
// nil for a Connect that failed. aged tells that database/sql closes c because of its age.
func (l *idleList) wrapperClosed(c *conn, aged bool) {
	var old []*physical
	l.mu.Lock()
	l.wrappers--
	if c != nil && c.resting {
		c.resting = false
		l.resting--
	}
	if aged {
		if age := time.Since(c.born); l.maxAge == 0 || age < l.maxAge {
			l.maxAge = age
		}
		l.free = slices.DeleteFunc(l.free, func(ph *physical) bool {
			tooOld := l.tooOld(ph)
			if tooOld {
				old = append(old, ph)
			}
			return tooOld
		})
	}
	old = append(old, l.removeOldest(len(l.free)-l.wrappers)...)
	l.watch()
	l.mu.Unlock()
	closeAll(old)
}

// close closes every idle connection. None is kept from now on.
func (l *idleList) close() {
	l.mu.Lock()
	l.closed = true
	old := l.removeOldest(len(l.free))
	l.mu.Unlock()
	closeAll(old)
}

// rest, tooOld, removeOldest and watch need mu.

func (l *idleList) rest(c *conn) {
	if !c.resting {
		c.resting = true
		l.resting++
	}
}

func (l *idleList) tooOld(ph *physical) bool {
	return l.maxAge > 0 && time.Since(ph.opened) >= l.maxAge
}

// removeOldest removes the n connections that have been idle for longest.
func (l *idleList) removeOldest(n int) []*physical {
	if n <= 0 {
		return nil
	}
	old := slices.Clone(l.free[:n])
	l.free = slices.Delete(l.free, 0, n)
	return old
}

// watch looks after the surplus: idle connections without a resting wrapper. SetMaxIdleConns and
// SetConnMaxIdleTime say how many wrappers rest, so they say how many connections may lie idle. But
// while callers wait for permits, every idle connection is surplus: the permits do not suffice for
// it. The part of the surplus that nobody took for parkTimeout is closed, longest idle first.
func (l *idleList) watch() {
	surplus := len(l.free)
	if l.waiting.Load() == 0 {
		surplus -= l.resting
	}
	l.minSurplus = min(l.minSurplus, surplus)
	if surplus > 0 && !l.watching {
		l.watching, l.minSurplus = true, surplus
		time.AfterFunc(parkTimeout, l.trim)
	}
}

func (l *idleList) trim() {
	l.mu.Lock()
	old := l.removeOldest(min(l.minSurplus, len(l.free)))
	l.watching = false
	l.watch()
	l.mu.Unlock()
	closeAll(old)
}

// closeAll closes connections that were removed from the list. database/sql may hold its lock.
func closeAll(old []*physical) {
	for _, ph := range old {
		ph.close()
	}
}
