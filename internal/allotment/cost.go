package allotment

import "time"

// A permit moves between pools when its holder closes a connection and the other pool opens one.
// This file decides when that pays.
//
// A move costs m: the time from the close to the end of the backend, the grant, and the connect.
// For so long the permit is of use to nobody, and the caller that waits for it waits. A caller
// whose own pool holds permits has another way: the next return. With n callers in the queue and
// one served every g, the last of them waits n x g. So a pool asks for a permit
//
//   - at once, if it has no connection open: no return can come;
//   - for as many callers as would wait longer than 2 m, that is n - 2 m/g of them. The others are
//     served before a permit could be here and back, for the permit of a burst is wanted back;
//   - for all of them, once the queue has not been empty for 4 m. That is no burst but a pool that
//     is too small, and a permit more repays its move many times over.
//
// With demand below capacity and a permit for each pool, bursts are over before the second and
// third rule strike, and nothing moves. The holder's side is in offer.go.
//
// The engine hears of m with each connect (engine.Pool.Moved) and spaces the moves of rotation by
// it; see next_turn in recalls.lua.
type costs struct {
	connect, end time.Duration // smoothed; 0: not measured yet
	connected    time.Time     // when a connection was last opened
	failing      bool          // the last dial failed
}

const (
	grantCost   = time.Millisecond // a release, and a grant that is pushed
	unknownCost = 10 * time.Millisecond
	// checkoutCost is for permits that cover checkouts: a release and a grant.
	checkoutCost = 2 * time.Millisecond
	// maxCost bounds one measurement: a host that does not answer says nothing of the next connect.
	maxCost = 10 * time.Second

	backlogCosts = 4 // see above
	burstCosts   = 2
	settleCosts  = 8
)

// smooth takes a measurement in.
func smooth(mean *time.Duration, sample time.Duration) {
	sample = min(max(sample, 1), maxCost)
	if *mean == 0 {
		*mean = sample
	}
	*mean += (sample - *mean) / 4
}

// moveCost is the m above.
func (a *Allotment) moveCost() time.Duration {
	switch {
	case a.opts.PerCheckout:
		return checkoutCost
	case a.costs.connect == 0:
		return unknownCost
	}
	return a.costs.connect + a.costs.end + grantCost
}

// reportMove tells the engine what a move costs, and that one has ended.
func (a *Allotment) reportMove() { a.engine.Moved(a.moveCost()) }

// backlog is how long callers have been waiting without a break, and how often one is served.
type backlog struct {
	since, served time.Time
	gap           time.Duration // mean time from one caller that is served to the next
}

// begin notes that a caller waits; the first one begins a backlog.
func (b *backlog) begin(now time.Time) {
	if b.since.IsZero() {
		b.since, b.served = now, now
	}
}

// serve notes that n callers were served, and how many are left.
func (b *backlog) serve(n, left int) {
	if n > 0 {
		now := time.Now()
		sample := now.Sub(b.served) / time.Duration(n)
		b.served = now
		if b.gap == 0 {
			b.gap = sample
		}
		b.gap = max(b.gap+(sample-b.gap)/8, 1)
	}
	if left == 0 {
		b.since = time.Time{}
	}
}

// worthAsking is for how many callers in the queue a permit more pays. If it may be more soon,
// without anything else happening, it also says when to compute it again.
func (a *Allotment) worthAsking() (n int, again time.Duration) {
	// The rest wait for their turn to dial, not for a permit.
	waiting := a.waiters.n - max(0, a.available()-a.slots.fixed)
	if waiting <= 0 {
		return 0, 0
	}
	cost := a.moveCost()
	lasts, since := time.Since(a.backlog.since), time.Since(a.backlog.served)
	long := backlogCosts * cost
	if a.opts.AcquireTimeout > 0 {
		long = min(long, a.opts.AcquireTimeout/8) // no caller should give up first
	}
	if a.kept() <= 0 || a.slots.n[idle]+a.slots.n[out] == 0 || lasts >= long {
		return waiting, 0
	}
	// While no caller is served the gap grows: the last one says nothing of operations that take
	// longer.
	burst := burstCosts * cost
	n = max(0, waiting-int(burst/max(a.backlog.gap, since, 1)))
	return n, min(long-lasts, max(burst/time.Duration(waiting)-since, long/16))
}

// Dials are paced: one, and one more every dialEvery as long as they take. A fleet that starts
// would otherwise open all it is granted in the same instant. Each connect would take many times as
// long, and permits that others ask for a moment later would be under connections already.
const (
	firstDials = 1
	dialEvery  = 5 * time.Millisecond
)

// mayTake reports whether a turn can be given: a permit is free, and it is under an idle slot or
// may be dialled under now.
func (a *Allotment) mayTake() bool {
	if a.available() <= a.slots.fixed {
		return false
	}
	if a.opts.PerCheckout || a.slots.idleLeft() {
		return true
	}
	n := a.slots.dials()
	return n < firstDials || n < firstDials+int(time.Since(a.dialing)/dialEvery)
}
