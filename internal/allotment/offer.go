package allotment

import (
	"math"
	"time"
)

// While a pool of the fleet waits, the others offer it what they do not use. A pool that has units free looks again each time that a move
// would take (unusedFor), and offers the most that one of three rules allows:
//
//   - what has not been used since the last look, but for one free unit, which is for the next caller;
//   - that one, too, when it has not been used for patience, and that long after a grant;
//   - what it holds beyond its use. The mean use of the last looks is to fill no more than fillMost of what stays. The first two rules see only
//     units that nobody touches; with short queries every unit is touched all the time, and a pool that kept two for the work of one
//     let another wait for seconds.
//
// Until the answer comes, which is Promised, a local caller can have each unit.

const (
	usesMost  = 16 // looks that the mean use is taken of
	usesLeast = 8  // looks before it says anything
	fillMost  = 0.8
)

// uses is the mean of the units in use at each look.
type uses struct {
	mean  float64
	looks int
	last  time.Time
}

// look takes a sample. One that comes long after the last begins a new mean.
func (u *uses) look(inUse int, every time.Duration) {
	now := time.Now()
	if now.Sub(u.last) > 4*every {
		*u = uses{}
	}
	u.last = now
	u.looks = min(u.looks+1, usesMost)
	u.mean += (float64(inUse) - u.mean) / float64(u.looks)
}

// need is how many units the use needs, at least one, and whether enough is known to say so.
func (u *uses) need() (n int, known bool) {
	return max(1, int(math.Ceil(u.mean/fillMost))), u.looks >= usesLeast
}

// Wanted tells whether any pool of the fleet waits.
func (a *Allotment) Wanted(yes bool) {
	a.mu.Lock()
	if yes != a.wanted {
		a.wanted = yes
		a.considerOffer()
	}
	a.mu.Unlock()
}

// considerOffer sets the offer timer if units lie unused while a pool of the fleet waits. While connections are uncounted we
// wait ourselves, for their permits: an offer could be promised to us, and cost a connection. The lock is held.
func (a *Allotment) considerOffer() {
	if !a.wanted || a.closed || a.waiters.len() > 0 || a.debt > 0 || a.uncounted > 0 || a.available() <= 0 {
		return
	}
	if !a.offering {
		a.setOffer(a.unusedFor())
	}
}

func (a *Allotment) setOffer(after time.Duration) {
	a.offering = true
	a.low, a.lowSince = a.available(), time.Now()
	time.AfterFunc(after, a.offer)
}

// offer looks at what is not used, and offers it.
func (a *Allotment) offer() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.offering = false
	a.uses.look(a.turns, a.unusedFor())
	n := min(a.low, a.available())
	if n == 0 {
		a.unused = 0
	} else {
		a.unused += time.Since(a.lowSince)
	}
	if !a.wanted || a.closed || a.waiters.len() > 0 || a.uncounted > 0 {
		return
	}
	settled := time.Since(a.granted) >= settleCosts*a.moveCost()
	if a.unused < a.patience() || !settled {
		n = min(n, a.available()-1) // one stays for the next caller
	}
	if need, known := a.uses.need(); known && settled {
		n = max(n, min(a.available(), a.owned-a.due-a.evicting-a.debt-need))
	}
	// What is due later in rotation, and lies idle for so long, pays at once.
	if early := min(n, len(a.deferred)); early > 0 {
		a.deferred = a.deferred[early:]
		a.owe(early)
		n -= early
	}
	if n > 0 {
		a.fleet.Offer(n)
	}
	if a.available() > 0 && !a.offering {
		a.setOffer(a.unusedFor())
	}
}

// Promised answers an Offer: n of the units offered are needed and promised to somebody.
func (a *Allotment) Promised(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gave = time.Now()
	a.owe(n)
}

// miss is called when a caller has to wait. If what he could have had was given away a moment ago, it should have been kept for longer. The
// lock is held.
func (a *Allotment) miss() {
	if a.gave.IsZero() {
		return
	}
	if time.Since(a.gave) < 4*a.unusedFor() {
		a.doublings, a.missed = min(a.reluctance()+1, doublingsMost), time.Now()
	}
	a.gave = time.Time{}
}

// patience is how long the last idle unit must lie unused before it is offered, too. The lock is held.
func (a *Allotment) patience() time.Duration {
	return max(min(settleCosts*a.moveCost()<<a.reluctance(), patienceMost), a.unusedFor())
}

// unusedFor is how long a unit beyond the last one must lie unused before it is offered. The lock is held.
func (a *Allotment) unusedFor() time.Duration {
	return min(max(a.moveCost(), patienceLeast), patienceMost)
}

// reluctance is how often patience has doubled, and not halved since. The lock is held.
func (a *Allotment) reluctance() int {
	return max(0, a.doublings-int(min(time.Since(a.missed)/patienceCalm, doublingsMost)))
}
