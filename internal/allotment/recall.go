package allotment

import (
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"
)

// The engine calls the methods of this file, of offer.go and of loss.go: together they are
// engine.Listener. None blocks.

// Granted takes permits that arrived. A connection that lives without one is counted in first.
func (a *Allotment) Granted(granted []*engine.Permit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grantedAt = time.Now()
	if a.opts.PerCheckout && a.owned() == a.permits.uncounted {
		a.reportMove()
	}
	for _, p := range granted {
		switch {
		case !p.Held(): // lost on its way here
			a.engine.Give(p)
		case a.permits.uncounted > 0 && a.countIn(p):
			a.reportMove() // it is connected already
		case a.closed:
			a.engine.Give(p)
		default:
			a.permits.add(p)
		}
	}
	a.recallEarly()
	a.settle()
}

// Recall asks for n permits back, once that time has passed. They are given at the next returns,
// before any local caller is served; what lies idle, and permits that nothing is opened under yet,
// at once.
//
// A recall that overtakes its grant counts when the grant is here: see earlyTimeout. All of them
// are kept. A pool that is granted all there is while others wait is asked for most of it before it
// hears of the grant.
func (a *Allotment) Recall(n int, after time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counted.Recalled += int64(n)
	a.debts.recall(n, after, time.Now())
	a.recallEarly()
}

// Keep takes n recalls back: no pool needs them any more. Slots that are leaving already go on.
func (a *Allotment) Keep(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.debts.withdraw(n, time.Now())
	a.settle()
}

// Owed is how many permits have been asked back and not been given yet.
func (a *Allotment) Owed() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.debts.forgetVoid(time.Now())
	return a.debts.early + len(a.debts.deferred) + a.debts.pending()
}

// recallEarly makes as many of the early recalls due, or defers them, as there are permits for.
func (a *Allotment) recallEarly() {
	now := time.Now()
	n, after := a.debts.granted(a.owned(), now)
	if n == 0 {
		return
	}
	if after = max(after, a.untilRepaid()); after <= 0 {
		a.owe(n)
		return
	}
	a.debts.deferUntil(now.Add(after), n)
	a.settleIn(after)
}

// owe makes n permits due.
func (a *Allotment) owe(n int) {
	a.debts.owe(n, a.owned())
	a.settle()
}

// oweDue owes the recalls whose time has come.
func (a *Allotment) oweDue() {
	if len(a.debts.deferred) == 0 {
		return
	}
	now := time.Now()
	for a.debts.takeDue(now) {
		if wait := a.untilRepaid(); wait > 0 {
			a.debts.deferUntil(now.Add(wait), 1)
		} else {
			a.debts.owe(1, a.owned())
		}
	}
	if len(a.debts.deferred) > 0 {
		a.settleIn(a.debts.deferred[0].Sub(now))
	}
}

// repayCosts is how many times as long as its connect took a pool keeps its only connection. A
// fleet that starts does not know yet what a connect costs; this keeps it from spending its time on
// connects.
const repayCosts = 3

// untilRepaid is how long a pool's only connection is to be used before it may be recalled. One
// that is still being opened is looked at again later; but a pool whose dials fail repays nothing.
func (a *Allotment) untilRepaid() time.Duration {
	if a.opts.PerCheckout || a.costs.failing || a.kept() != 1 || a.closed {
		return 0
	}
	if a.slots.n[opening] > 0 {
		return max(a.costs.connect/2, minPatience)
	}
	return min(time.Until(a.costs.connected.Add(repayCosts*a.costs.connect)), maxCost)
}
