package allotment

import (
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"
)

// settle brings the allotment to rest after a change: it pays debts, serves the callers that wait,
// gives back spare permits that no caller can use, and tells the engine what is still wanted.
// Everything that changes a counter ends with it.
func (a *Allotment) settle() {
	a.giveStale()
	a.oweDue()
	a.payDebts()
	a.serve()
	// A spare permit is of use only to a caller that is about to open a slot: what is free beyond
	// the idle slots goes back.
	for len(a.permits.spare) > 0 && a.openers.n == 0 &&
		a.available() > a.slots.n[idle]+a.waiters.n && !a.keepsSpare() {
		a.debts.paySpare()
		a.giveSpare()
	}
	if !a.searching && a.mustEvict() {
		a.searching = true
		go a.search()
	}
	a.resolveSoon()
	a.ask()
	a.considerOffer()
}

// giveStale gives spare permits away whose lease cannot be proven any more, though the engine has
// not said so yet: nothing may be opened under them.
func (a *Allotment) giveStale() {
	for p := a.permits.takeStale(); p != nil; p = a.permits.takeStale() {
		a.give(p)
	}
}

// payDebts pays what is owed from what is free: a spare permit, or else an idle slot, which has to
// be found in the pool first.
func (a *Allotment) payDebts() {
	a.debts.owe(0, a.owned()) // what was lost cannot be given
	for a.debts.owed > 0 && a.available() > 0 {
		if len(a.permits.spare) > 0 {
			a.debts.paySpare()
			a.giveSpare()
		} else {
			a.debts.setAside()
		}
	}
}

// serve gives spare permits to the callers that open, and turns to those that wait for one.
func (a *Allotment) serve() {
	for a.openers.n > 0 && len(a.permits.spare) > 0 {
		w := a.openers.pop()
		a.endWait(w)
		w.slot = a.newSlot()
		close(w.ready)
	}
	served := 0
	for a.waiters.n > 0 && (a.mayTake() || a.available() <= a.slots.fixed && a.addUncounted()) {
		w := a.waiters.pop()
		a.endWait(w)
		// Callers that are on their way take as many spare permits as there are, and open. So this
		// one is to have an idle connection.
		w.warm = a.slots.turns-a.slots.n[out] >= len(a.permits.spare)+a.slots.n[opening]
		w.slot = a.takeTurn(w.claim)
		close(w.ready)
		served++
	}
	if served > 0 || !a.backlog.since.IsZero() {
		a.backlog.serve(served, a.waiters.n)
	}
	if a.waiters.n > 0 && a.available() > a.slots.fixed {
		a.settleIn(dialEvery)
	}
}

// keepSpare is how long a permit that covers no connection is kept for the next caller, unused.
const keepSpare = 50 * time.Millisecond

// keepsSpare reports whether a permit that covers no connection stays for the next caller, who
// would else ask Redis for it.
func (a *Allotment) keepsSpare() bool {
	rest := keepSpare - time.Since(a.usedAt)
	ok := a.opts.PerCheckout && !a.closed && rest > 0
	if ok {
		a.settleIn(rest)
	}
	return ok
}

// giveSpare gives the newest spare permit to the engine.
func (a *Allotment) giveSpare() { a.give(a.permits.take()) }

// give ends what this pool has of p, which is neither spare nor under a slot any more: the engine
// releases it. Nil stands for a permit that this process gave itself.
func (a *Allotment) give(p *engine.Permit) {
	if p == nil {
		a.permits.uncounted--
		return
	}
	a.engine.Give(p)
}

// ask tells the engine how many permits are missing:
//
//   - one for each caller in the queue that a move pays for (see cost.go) and the pool has room
//     for;
//   - one for each uncounted permit, and one for each turn that has lost its permit, while there is
//     a Redis to ask. With those the pool stays in its session, though it may hold and ask for
//     nothing: it is to be told when Redis is back, or the engine is closed.
func (a *Allotment) ask() {
	n, again := a.worthAsking()
	if again > 0 {
		a.settleIn(again)
	}
	if n > 0 && a.opts.MaxConns > 0 {
		room := a.opts.MaxConns + a.outside - (a.owned() - a.debts.evicting - a.debts.leaving)
		n = min(n, max(0, room))
	}
	missing := a.permits.uncounted + a.turnsWithoutPermit()
	if missing > 0 && a.engine.Err() == nil {
		n += missing
	}
	if stays := missing > 0; stays != a.stays {
		a.stays = stays
		a.engine.Stay(stays)
	}
	a.engine.Ask(n)
}

// turnsWithoutPermit is how many turns have lost the spare permit, or the idle slot, that was free
// when they were given. The permits of slots that are leaving come back, so they are not missing.
func (a *Allotment) turnsWithoutPermit() int {
	if a.openers.n == 0 {
		return 0
	}
	return max(0, a.slots.turns+a.debts.evicting+a.debts.leaving-a.owned())
}

// settleIn settles again after d, or earlier.
func (a *Allotment) settleIn(d time.Duration) {
	d = max(d, time.Millisecond)
	at := time.Now().Add(d)
	if a.timer != nil {
		if !at.Before(a.timerAt) {
			return
		}
		a.timer.Stop() // should it run all the same, it settles once more
	}
	a.timerAt = at
	a.timer = time.AfterFunc(d, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.timerAt.Equal(at) {
			a.timer = nil
		}
		if !a.closed {
			a.settle()
		}
	})
}
