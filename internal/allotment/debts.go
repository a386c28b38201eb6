package allotment

import (
	"slices"
	"time"
)

// debts are the permits that the engine has asked back and that were not given yet.
//
//	recall --> early --> deferred --> owed --> evicting --> leaving --> given
//	             |          |           |                      ^          ^
//	             |          |           +-- a returned slot ---+          |
//	             |          +-----------+-- a spare permit ---------------+
//	             +--> void: no grant follows
//
// A slot that is leaving, but in doubt, can leave its permit to another (lend): it is owed again.
//
// A withdrawal (Keep) takes recalls back from left to right, up to evicting. Invariants, while
// nobody holds the allotment's lock:
//
//   - no count is below zero, and leaving is at most the slots in state leaving;
//   - owed <= max(0, permits owned - evicting - leaving).
type debts struct {
	early    int           // recalls without a permit to recall: their grant is not here
	after    time.Duration // of those: how long after the grant they are due
	earlyAt  time.Time     // when the last of those came
	deferred []time.Time   // when recalls fall due that are not due yet, the earliest first
	owed     int           // due, and no slot is set aside: what is free next pays, before any caller
	evicting int           // an idle slot is set aside, and the pool is searched for it
	leaving  int           // a slot is leaving, and the next permit that becomes spare is given
}

// earlyTimeout is how long recalls wait for their grant. A recall is pushed, and a grant comes with
// a reply, on another connection: a recall can overtake the grant of its permit. A recall that no
// grant follows was for a permit that we had just given back, and is void.
const earlyTimeout = 100 * time.Millisecond

// pending is how many permits are to be given as soon as they can be.
func (d *debts) pending() int { return d.owed + d.evicting + d.leaving }

// recall notes that the engine asks for n permits back, after that time.
func (d *debts) recall(n int, after time.Duration, now time.Time) {
	d.forgetVoid(now)
	if d.early > 0 {
		after = min(after, d.after)
	}
	d.early, d.after, d.earlyAt = d.early+n, after, now
}

// forgetVoid forgets early recalls that no grant has followed.
func (d *debts) forgetVoid(now time.Time) {
	if now.Sub(d.earlyAt) >= earlyTimeout {
		d.early = 0
	}
}

// granted takes as many of the early recalls as there are permits for, of which that many are
// owned. The caller makes them due or defers them.
func (d *debts) granted(owned int, now time.Time) (n int, after time.Duration) {
	d.forgetVoid(now)
	n = max(0, min(d.early, owned-d.pending()-len(d.deferred)))
	d.early -= n
	return n, d.after
}

// withdraw takes n recalls back. Slots that are leaving already go on.
func (d *debts) withdraw(n int, now time.Time) {
	d.forgetVoid(now)
	take := func(from *int) {
		k := min(n, *from)
		*from -= k
		n -= k
	}
	take(&d.early)
	rest := len(d.deferred)
	take(&rest)
	d.deferred = d.deferred[:rest] // those that are due last
	take(&d.owed)
	take(&d.evicting)
}

// deferUntil puts n recalls among those that are not due yet.
func (d *debts) deferUntil(at time.Time, n int) {
	i, _ := slices.BinarySearchFunc(d.deferred, at, time.Time.Compare)
	d.deferred = slices.Insert(d.deferred, i, slices.Repeat([]time.Time{at}, n)...)
}

// takeDue removes the first deferred recall if it is due, and reports whether it was. The caller
// owes it, or defers it again.
func (d *debts) takeDue(now time.Time) bool {
	ok := len(d.deferred) > 0 && !d.deferred[0].After(now)
	if ok {
		d.deferred = d.deferred[1:]
	}
	return ok
}

// owe adds n to what is owed, but never more than the pool has: what has left meanwhile has paid.
func (d *debts) owe(n, owned int) {
	d.owed = min(d.owed+n, max(0, owned-d.evicting-d.leaving))
}

// advance owes up to n of the deferred recalls before they are due, and returns how many.
func (d *debts) advance(n, owned int) int {
	n = min(n, len(d.deferred))
	d.deferred = d.deferred[n:]
	d.owe(n, owned)
	return n
}

// setAside has an idle slot pay one that is owed, once the pool has found it.
func (d *debts) setAside() {
	d.owed--
	d.evicting++
}

// leave notes that a slot leaves. Where one is to be evicted, that is the one.
func (d *debts) leave() {
	if d.evicting > 0 {
		d.evicting--
		d.leaving++
	}
}

// payByReturn has a slot that was just returned pay one that is owed: the slot leaves.
func (d *debts) payByReturn() {
	d.owed--
	d.leaving++
}

// paySpare notes that a spare permit is given. It pays one that is owed, or else one that is
// deferred, although nobody asks for that yet: Redis counts it so, too.
func (d *debts) paySpare() {
	switch {
	case d.owed > 0:
		d.owed--
	case len(d.deferred) > 0:
		d.deferred = d.deferred[1:]
	}
}

// payByEnd notes that a slot has ended, and its permit is given.
func (d *debts) payByEnd() { d.leaving = max(0, d.leaving-1) }

// reopen is bound where the slot that has gone leaves its permit to the pool: what that permit was to
// pay is owed again.
func (d *debts) reopen(leaving int) {
	d.owed += max(0, d.leaving-leaving)
	d.bound(leaving)
}

// bound keeps leaving at no more than the slots that are leaving: each is paid by one of those, but
// not by one whose lease was lost.
func (d *debts) bound(leaving int) { d.leaving = min(d.leaving, leaving) }
