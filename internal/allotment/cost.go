package allotment

import "time"

// A permit moves between pools when its holder closes a connection and the other pool opens one. This file decides when that pays.
//
// A move costs m: the time from the close to the end of the backend, the grant, and the connect. For so long the permit is of use to nobody,
// and the caller that waits for it waits. A caller whose own pool holds permits has another way: the next return. With n callers in the
// queue and one served every g, the last of them waits n x g. So a pool asks for a permit
//
//   - at once, if it has no connection open: no return can come;
//   - for as many callers as would wait longer than 2 m, that is n - 2 m/g of them: the others are served before a permit could be here and
//     back, for the permit of a burst is wanted back;
//   - for all of them, once the queue has not been empty for 4 m. That is no burst but a pool that is too small, and a permit more repays its move many times over.
//
// With demand below capacity and a permit for each pool, bursts are over before the second and third rule strike, and nothing moves.
//
// The holder's side is in offer.go.
//
// The fleet hears of m with each connect (Share.Moved) and spaces the moves of rotation by it; see next_turn in recalls.lua.
type costs struct {
	connect, end time.Duration // smoothed; 0: not measured yet
}

const (
	grantCost   = time.Millisecond // a release, and a grant that is pushed
	costUnknown = 10 * time.Millisecond
	// costDetached is what a permit costs to move that covers no connection: a release and a grant.
	costDetached = 2 * time.Millisecond
	// costMost bounds one measurement: a host that does not answer says nothing of the next connect.
	costMost = 10 * time.Second

	backlogCosts = 4 // see above
	burstCosts   = 2
	settleCosts  = 8
)

// move is what it costs to move a permit.
func (c *costs) move() time.Duration {
	if c.connect == 0 {
		return costUnknown
	}
	return c.connect + c.end + grantCost
}

// smooth takes a measurement in.
func smooth(mean *time.Duration, sample time.Duration) {
	sample = min(max(sample, 1), costMost)
	if *mean == 0 {
		*mean = sample
	} else {
		*mean += (sample - *mean) / 4
	}
}

func (a *Allotment) moveCost() time.Duration {
	if a.opts.Detached {
		return costDetached
	}
	return a.costs.move()
}

// connected notes that c can be used. The lock is held.
func (c *Conn) connected() {
	a := c.a
	a.shut = false // the configuration serves another pool
	if len(a.outlived) > 0 {
		a.reopened = true
		a.resolveSoon()
	}
	if a.opts.Detached {
		return
	}
	a.ready, a.failing = time.Now(), false
	smooth(&a.costs.connect, a.ready.Sub(c.since))
	a.moved(a.costs.move())
}

// moved tells the fleet what a move costs, and that one has ended. The lock is held.
func (a *Allotment) moved(cost time.Duration) {
	if m, ok := a.fleet.(interface{ Moved(time.Duration) }); ok {
		m.Moved(cost)
	}
}

// backlog is the time since callers have been waiting without a break, and gap the mean time from one that is served to the next.
type backlog struct {
	since, served time.Time
	gap           time.Duration
}

// begin notes that a caller waits; the first one begins a backlog.
func (b *backlog) begin() {
	if b.since.IsZero() {
		b.since = time.Now()
		b.served = b.since
	}
}

// serve notes that n callers were served, and how many are left.
func (b *backlog) serve(n, left int) {
	if n > 0 {
		now := time.Now()
		sample := now.Sub(b.served) / time.Duration(n)
		b.served = now
		if b.gap == 0 {
			b.gap = max(sample, 1)
		} else {
			b.gap = max(b.gap+(sample-b.gap)/8, 1)
		}
	}
	if left == 0 {
		b.since = time.Time{}
	}
}

// paying is how many callers in the queue a permit more pays for. If it may be more soon, without anything else happening, it also says
// when to look again. The lock is held.
func (a *Allotment) paying() (n int, again time.Duration) {
	waiting := a.waiters.len() - max(0, a.available()-a.fixed) // the rest wait for their turn to dial, not for a permit
	if waiting <= 0 {
		return 0, 0
	}
	cost := a.moveCost()
	lasts, since := time.Since(a.backlog.since), time.Since(a.backlog.served)
	long := backlogCosts * cost
	if a.opts.AcquireTimeout > 0 {
		long = min(long, a.opts.AcquireTimeout/8) // no caller should give up first
	}
	if a.owned-a.debt-a.due-a.evicting <= 0 || a.conns[idle]+a.conns[out] == 0 || lasts >= long {
		return waiting, 0
	}
	// While nobody is served the gap grows: the last one says nothing of operations that take longer.
	burst := burstCosts * cost
	n = max(0, waiting-int(burst/max(a.backlog.gap, since, 1)))
	return n, min(long-lasts, max(burst/time.Duration(waiting)-since, long/16))
}

// Dials are paced: one, and one more every dialEvery as long as they take. A fleet that starts would otherwise open all
// it is granted in the same instant, each connect would take many times as long, and permits that others ask for a moment later would be under
// connections already.
const (
	dialsAtOnce = 1
	dialEvery   = 5 * time.Millisecond
)

// dials is how many connections callers with a turn are opening, or are about to. The lock is held.
func (a *Allotment) dials() int { return max(0, a.turns-a.conns[out]-a.conns[idle]) }

// mayTake reports whether a turn can be given: a unit is free, and it is an idle connection or may be dialled now. The lock is held.
func (a *Allotment) mayTake() bool {
	if a.available() <= a.fixed {
		return false
	}
	if a.turns-a.conns[out] < a.conns[idle] || a.opts.Detached {
		return true
	}
	n := a.dials()
	return n < dialsAtOnce || n < dialsAtOnce+int(time.Since(a.dialling)/dialEvery)
}
