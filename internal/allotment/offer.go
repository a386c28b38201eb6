package allotment

import (
	"math"
	"time"
)

// While a pool of the fleet waits, the others offer it what they do not use. A pool with free
// permits takes a sample of its use each time that a move would take (unusedFor). It offers the
// most that one of three rules allows:
//
//   - the permits that were not used since the last sample, except one, which is for the next
//     caller;
//   - that one as well, once it has not been used for as long as the pool's patience, and that long
//     after a grant;
//   - what the pool holds beyond its mean use. The mean use of the last samples is to fill no more
//     than targetUse of what stays. The first two rules see only permits that nobody touches. With
//     short queries every permit is touched all the time, and a pool that kept two for the work of
//     one let another wait for seconds.
//
// Until the answer comes, which is Promised, a local caller can have each permit.
type offers struct {
	wanted bool          // a pool of the fleet waits
	timed  bool          // the timer of the next sample is set
	low    int           // fewest free turns since it was set
	since  time.Time     // when it was set
	unused time.Duration // for how long the samples have found a turn that nobody used
	use    use
}

const (
	maxSamples = 16 // samples that the mean use is taken of
	minSamples = 8  // samples before the mean counts
	targetUse  = 0.8
)

// use is the mean of the turns in use at each sample.
type use struct {
	mean    float64
	samples int
	last    time.Time
}

// sample takes a sample. One that comes long after the last begins a new mean.
func (u *use) sample(now time.Time, turns int, every time.Duration) {
	if now.Sub(u.last) > 4*every {
		*u = use{}
	}
	u.last = now
	u.samples = min(u.samples+1, maxSamples)
	u.mean += (float64(turns) - u.mean) / float64(u.samples)
}

// need is how many permits the use needs, at least one, and whether enough is known to say so.
func (u *use) need() (n int, known bool) {
	return max(1, int(math.Ceil(u.mean/targetUse))), u.samples >= minSamples
}

// Wanted tells whether any pool of the fleet waits.
func (a *Allotment) Wanted(yes bool) {
	a.mu.Lock()
	if yes != a.offers.wanted {
		a.offers.wanted = yes
		a.considerOffer()
	}
	a.mu.Unlock()
}

// considerOffer sets the timer of the next sample if permits lie unused while a pool of the fleet
// waits. While slots are uncounted this pool waits itself, for their permits: its offer could be
// promised to it, and cost a connection.
func (a *Allotment) considerOffer() {
	o := &a.offers
	if o.wanted && !o.timed && !a.closed && a.waiters.n == 0 && a.debts.owed == 0 &&
		a.permits.uncounted == 0 && a.available() > 0 {
		a.setOfferTimer()
	}
}

func (a *Allotment) setOfferTimer() {
	o := &a.offers
	o.timed, o.low, o.since = true, a.available(), time.Now()
	time.AfterFunc(a.unusedFor(), a.offer)
}

// offer takes a sample, and offers what is not used. It takes the lock.
func (a *Allotment) offer() {
	a.mu.Lock()
	defer a.mu.Unlock()
	o, now := &a.offers, time.Now()
	o.timed = false
	o.use.sample(now, a.slots.turns, a.unusedFor())
	n := min(o.low, a.available())
	o.unused += now.Sub(o.since)
	if n == 0 {
		o.unused = 0
	}
	if !o.wanted || a.closed || a.waiters.n > 0 || a.permits.uncounted > 0 {
		return
	}
	settled := now.Sub(a.grantedAt) >= settleCosts*a.moveCost()
	enough := max(a.patience.length(now, settleCosts*a.moveCost()), a.unusedFor())
	if o.unused < enough || !settled {
		n = min(n, a.available()-1) // one stays for the next caller
	}
	if need, known := o.use.need(); known && settled {
		n = max(n, min(a.available(), a.kept()-need))
	}
	// A recall that is due later, in rotation, is paid at once by what lies idle for so long.
	if early := a.debts.advance(max(0, n), a.owned()); early > 0 {
		a.settle()
		n -= early
	}
	if n > 0 {
		a.engine.Offer(n)
	}
	if a.available() > 0 && !o.timed {
		a.setOfferTimer()
	}
}

// Promised answers an Offer: n of the permits offered are needed and promised to another pool.
func (a *Allotment) Promised(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counted.Recalled += int64(n)
	a.patience.promise(time.Now())
	a.owe(n)
}

// unusedFor is how long a permit beyond the last free one must lie unused before it is offered.
func (a *Allotment) unusedFor() time.Duration {
	return min(max(a.moveCost(), minPatience), maxPatience)
}
