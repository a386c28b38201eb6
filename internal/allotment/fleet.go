package allotment

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// The methods of this file are what the fleet tells the allotment; together they are
// semaphore.Sharer. None blocks.

// Granted takes permits that arrived. A connection that lives without one is counted in first.
func (a *Allotment) Granted(permits []*semaphore.Permit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.granted = time.Now()
	for _, p := range permits {
		if !p.Held() { // lost on its way here
			a.fleet.Give(p)
			continue
		}
		if a.uncounted > 0 && a.countIn(p) {
			continue
		}
		a.owned++
		if a.closed {
			a.disown(p)
			continue
		}
		a.spare = append(a.spare, p)
	}
	a.catchUp()
	a.settle()
}

// countIn puts p where a connection, or a spare unit, has none. The lock is held.
func (a *Allotment) countIn(p *semaphore.Permit) bool {
	for i, s := range a.spare {
		if s == nil {
			a.spare[i] = p
			a.uncounted--
			return true
		}
	}
	for c := range a.all {
		if c.permit == nil && !c.lost {
			c.permit = p
			a.uncounted--
			return true
		}
	}
	return false
}

// Recall asks for n permits back, each not before it was held for tenure. They are given at
// the next returns, before any local caller is served.
//
// A recall is pushed, and a grant comes with a reply, on another connection: the recall of a permit can overtake
// its grant. It is kept for a moment, then, and counts when the grant is here. So are all of them: a pool that is granted all there is while
// others wait is asked for most of it before it hears of that. Otherwise it is for a permit that we have just given back, and void.
func (a *Allotment) Recall(n int, tenure time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetVoid()
	a.ahead = ahead{n: a.ahead.n + n, tenure: tenure, at: time.Now()}
	a.catchUp()
}

// ahead are recalls that have found nothing to recall yet.
type ahead struct {
	n      int
	tenure time.Duration
	at     time.Time // of the last of them
}

// aheadFor is how long recalls are kept that came ahead of their grant.
const aheadFor = 100 * time.Millisecond

// forgetVoid forgets the recalls that no grant has followed. The lock is held.
func (a *Allotment) forgetVoid() {
	if time.Since(a.ahead.at) >= aheadFor {
		a.ahead.n = 0
	}
}

// catchUp carries out as many of the recalls as there is anything for. The lock is held.
func (a *Allotment) catchUp() {
	a.forgetVoid()
	if n := min(a.ahead.n, a.owned-a.due-a.evicting-a.debt-a.deferred); n > 0 {
		a.ahead.n -= n
		a.recall(n, a.ahead.tenure)
	}
}

// recall makes n permits due, now or after their tenure. The lock is held.
func (a *Allotment) recall(n int, tenure time.Duration) {
	wait := time.Until(a.granted.Add(tenure))
	if tenure == 0 || wait <= 0 {
		a.owe(n)
		return
	}
	a.deferred += n
	time.AfterFunc(wait, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		// What lay idle meanwhile has paid early: see offer.
		paid := min(n, a.early)
		a.early -= paid
		a.deferred -= n - paid
		a.owe(n - paid)
	})
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
	if patience := a.patience(); time.Since(a.gave) < 4*patience {
		a.grace, a.missed = min(2*patience, graceMost), time.Now()
	}
	a.gave = time.Time{}
}

// patience is how long a unit must lie unused now before it is offered. The lock is held.
func (a *Allotment) patience() time.Duration {
	calm := min(time.Since(a.missed)/graceCalm, 16)
	return max(a.grace>>calm, idleGrace)
}

// owe adds to the debt, but never more than there is: what has left in the meantime has paid. The lock is held.
func (a *Allotment) owe(n int) {
	a.debt = min(a.debt+n, max(0, a.owned-a.due-a.evicting))
	a.settle()
}

// Owed is how many permits have been asked back and not been given yet.
func (a *Allotment) Owed() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.deferred + a.debt + a.evicting + a.due
}

// Wanted tells whether anyone in the fleet waits.
func (a *Allotment) Wanted(yes bool) {
	a.mu.Lock()
	if yes != a.wanted {
		a.wanted = yes
		a.considerOffer()
	}
	a.mu.Unlock()
}

// Changed tells that Redis went away or came back: see Fleet.Err. Once it is back, connections that lived without a permit
// are counted in as grants come. Those that are not counted in soon end: when they are returned, or now if they are idle.
func (a *Allotment) Changed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.uncounted > 0 && a.fleet.Err() == nil {
		a.countInSoon()
	}
	a.settle()
}

// countInSoon sets the time until which connections may live without a permit. The lock is held.
func (a *Allotment) countInSoon() {
	a.back = time.Now()
	time.AfterFunc(countInGrace, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for c := a.idle.next; c != &a.idle; c = c.next {
			if c.state == idle && a.mustCountIn(c) {
				go a.pool.Fence(c)
			}
		}
	})
}

// mustCountIn reports whether c lives without a permit although Redis has been back for long enough to grant
// it one. The lock is held.
func (a *Allotment) mustCountIn(c *Conn) bool {
	return c.permit == nil && !c.lost && a.fleet.Err() == nil && time.Since(a.back) >= countInGrace
}

// Lost tells that the lease of p can no longer be proven. Its connection is fenced. With
// KeepOnLoss, or within FallbackConns, it lives on uncounted until a new grant counts it in.
func (a *Allotment) Lost(p *semaphore.Permit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, s := range a.spare {
		if s == p {
			a.spare = append(a.spare[:i], a.spare[i+1:]...)
			a.disown(p) // and say so: with Options.Fence, what it covered before may be recorded
			a.settle()
			return
		}
	}
	for c := range a.all {
		if c.permit != p {
			continue
		}
		c.permit = nil
		if c.state != leaving && (a.opts.KeepOnLoss || a.uncounted < a.opts.FallbackConns) {
			a.uncounted++
			a.countInSoon()
			break
		}
		c.lost = true
		if a.opts.Fence {
			c.lapsed = p
		}
		go a.pool.Fence(c)
		break
	}
	a.settle()
}

// Closed tells that the semaphore is being closed: nobody is served any more, idle connections
// are ended, and those that are out are fenced.
func (a *Allotment) Closed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, q := range []*queue{&a.waiters, &a.openers} {
		for q.len() > 0 {
			w := q.pop()
			w.err = fmt.Errorf("passbuddy: %w", semaphore.ErrClosed)
			close(w.ready)
		}
	}
	for len(a.spare) > 0 {
		a.giveSpare()
	}
	for c := range a.all {
		if c.state != leaving {
			go a.pool.Fence(c)
		}
	}
	a.fleet.Ask(0)
}

// considerOffer sets the offer timer if units lie unused while somebody in the fleet waits. While connections are uncounted we
// wait ourselves, for their permits: an offer could be promised to us, and cost a connection. The lock is held.
func (a *Allotment) considerOffer() {
	if a.wanted && !a.offering && !a.closed && a.waiters.len() == 0 && a.debt == 0 && a.uncounted == 0 && a.available() > 0 {
		a.setOffer(a.patience())
	}
}

func (a *Allotment) setOffer(after time.Duration) {
	a.offering = true
	a.low = a.available()
	time.AfterFunc(after, a.offer)
}

// offer tells the fleet what lay unused for the whole time since the timer was set. The answer is Promised, and
// only that sets anything aside: until then a local caller can have the unit.
func (a *Allotment) offer() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.offering = false
	n := min(a.low, a.available())
	if !a.wanted || a.closed || a.waiters.len() > 0 || a.uncounted > 0 {
		return
	}
	// The tenure protects what is in use. What lies idle pays for a recall at once.
	if early := min(n, a.deferred); early > 0 {
		a.deferred -= early
		a.early += early
		a.owe(early)
		n -= early
	}
	if n > 0 {
		a.fleet.Offer(n)
	}
	if a.available() > 0 && !a.offering {
		a.setOffer(max(a.patience(), offerAgain))
	}
}

// Figures is a count of the allotment at one instant, for tests and for operators.
type Figures struct {
	Owned, Spare, Turns, Waiting, Owed int
	Opening, Idle, Out, Leaving        int
}

// Figures counts.
func (a *Allotment) Figures() Figures {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Figures{
		Owned: a.owned, Spare: len(a.spare), Turns: a.turns, Waiting: a.waiters.len(),
		Owed:    a.debt + a.evicting + a.due,
		Opening: a.conns[opening], Idle: a.conns[idle], Out: a.conns[out], Leaving: a.conns[leaving],
	}
}
