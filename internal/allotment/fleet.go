package allotment

import (
	"fmt"
	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
	"slices"
	"time"
)

// The methods of this file are what the fleet tells the allotment; together they are
// engine.Listener. None blocks.

// Granted takes permits that arrived. A connection that lives without one is counted in first.
func (a *Allotment) Granted(permits []*engine.Permit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.granted = time.Now()
	if a.opts.Detached && a.owned == a.uncounted {
		a.moved(costDetached)
	}
	for _, p := range permits {
		if !p.Held() { // lost on its way here
			a.fleet.Give(p)
			continue
		}
		if a.uncounted > 0 && a.countIn(p) {
			a.moved(a.moveCost()) // it is connected already
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
func (a *Allotment) countIn(p *engine.Permit) bool {
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

// Recall asks for n permits back, once that time has passed. They are given at the next returns, before any local caller is
// served; what lies idle, and permits that nothing is opened under yet, at once.
//
// A recall is pushed, and a grant comes with a reply, on another connection: the recall of a permit can overtake
// its grant. It is kept for a moment, then, and counts when the grant is here. So are all of them: a pool that is granted all there is while
// others wait is asked for most of it before it hears of that. Otherwise it is for a permit that we have just given back, and void.
func (a *Allotment) Recall(n int, after time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetVoid()
	if a.ahead.n > 0 {
		after = min(after, a.ahead.after)
	}
	a.ahead = ahead{n: a.ahead.n + n, after: after, at: time.Now()}
	a.catchUp()
}

// Keep takes n recalls back: nobody needs them any more. Connections that are ending already go on with it.
func (a *Allotment) Keep(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetVoid()
	take := func(from *int) {
		k := min(n, *from)
		*from -= k
		n -= k
	}
	take(&a.ahead.n)
	rest := len(a.deferred)
	take(&rest)
	a.deferred = a.deferred[:rest] // those that are due last
	take(&a.debt)
	take(&a.evicting)
	a.settle()
}

// ahead are recalls that have found nothing to recall yet.
type ahead struct {
	n     int
	after time.Duration
	at    time.Time // of the last of them
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
	if n := min(a.ahead.n, a.owned-a.due-a.evicting-a.debt-len(a.deferred)); n > 0 {
		a.ahead.n -= n
		a.recall(n, a.ahead.after)
	}
}

// recall makes n permits due after that time. The lock is held.
func (a *Allotment) recall(n int, after time.Duration) {
	if after = max(after, a.untilRepaid()); after <= 0 {
		a.owe(n)
		return
	}
	a.deferUntil(time.Now().Add(after), n)
	a.settleIn(after)
}

// deferUntil puts n recalls where they belong among those that are not due yet. The lock is held.
func (a *Allotment) deferUntil(at time.Time, n int) {
	i, _ := slices.BinarySearchFunc(a.deferred, at, time.Time.Compare)
	for range n {
		a.deferred = slices.Insert(a.deferred, i, at)
	}
}

// fallDue makes a debt of the recalls whose time has come. The lock is held.
func (a *Allotment) fallDue() {
	if len(a.deferred) == 0 {
		return
	}
	now := time.Now()
	for len(a.deferred) > 0 && !a.deferred[0].After(now) {
		a.deferred = a.deferred[1:]
		if wait := a.untilRepaid(); wait > 0 {
			a.deferUntil(now.Add(wait), 1)
			continue
		}
		a.debt++
	}
	if len(a.deferred) > 0 {
		a.settleIn(a.deferred[0].Sub(now))
	}
}

// repayCosts is how many times as long as its connect took a pool keeps its only connection. A fleet that starts does not know yet what a
// connect costs; this keeps it from spending its time on connects.
const repayCosts = 3

// untilRepaid is how long a pool's only connection is to be used before it may be recalled. What is still being opened is looked at
// again later; but a pool whose dials fail repays nothing. The lock is held.
func (a *Allotment) untilRepaid() time.Duration {
	if a.opts.Detached || a.failing || a.owned-a.due-a.evicting-a.debt != 1 || a.closed {
		return 0
	}
	if a.conns[opening] > 0 {
		return max(a.costs.connect/2, patienceLeast)
	}
	return min(time.Until(a.ready.Add(repayCosts*a.costs.connect)), costMost)
}

// payFreely counts a permit that is given without being asked for as one of those that are owed: Redis does, too. The lock is held.
func (a *Allotment) payFreely() {
	switch {
	case a.debt > 0:
		a.debt--
	case len(a.deferred) > 0:
		a.deferred = a.deferred[1:]
	}
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
	a.forgetVoid()
	return a.ahead.n + len(a.deferred) + a.debt + a.evicting + a.due
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
func (a *Allotment) Lost(p *engine.Permit) {
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
			w.err = fmt.Errorf("passbuddy: %w", core.ErrClosed)
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
