package allotment

import (
	"github.com/passbuddy/passbuddy/internal/engine"
	"time"
)

// settle brings the allotment to rest after a change: it pays debts, serves those who
// wait, gives back what nobody here can use, and tells the fleet what is still wanted.
// Everything that changes a counter ends with it. The lock is held.
func (a *Allotment) settle() {
	a.dropStale()
	a.fallDue()
	a.debt = min(a.debt, max(0, a.owned-a.due-a.evicting)) // what was lost cannot be given
	for a.debt > 0 && a.available() > 0 {
		a.debt--
		if len(a.spare) > 0 {
			a.giveSpare()
		} else {
			a.evicting++
		}
	}
	for a.openers.len() > 0 && len(a.spare) > 0 {
		w := a.openers.pop()
		w.conn = a.bind()
		close(w.ready)
	}
	served := 0
	for a.waiters.len() > 0 && (a.mayTake() || a.available() <= a.fixed && a.fallBack()) {
		w := a.waiters.pop()
		// Callers that are on their way take as many spare permits as there are, and open. So this one is to have an idle connection.
		w.warm = a.turns-a.conns[out] >= len(a.spare)+a.conns[opening]
		w.conn = a.take(w.claim)
		close(w.ready)
		served++
	}
	if served > 0 || !a.backlog.since.IsZero() {
		a.backlog.serve(served, a.waiters.len())
	}
	if a.waiters.len() > 0 && a.available() > a.fixed {
		a.settleIn(dialEvery)
	}
	// A permit without a connection is of use only to a caller that is about to open one:
	// what is free beyond the idle connections goes back.
	for len(a.spare) > 0 && a.openers.len() == 0 && a.available() > a.conns[idle]+a.waiters.len() && !a.keeps() {
		a.payFreely()
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

// ask tells the engine how many permits are missing: one for each caller in the queue that it pays for (see cost.go) and its pool has room for,
// one for each connection that lives without and one for each turn that has lost its unit (those two only
// while there is a Redis to ask: the pool then stays in its session, to hear when Redis is back). The lock is held.
func (a *Allotment) ask() {
	n, again := a.paying()
	if again > 0 {
		a.settleIn(again)
	}
	if n > 0 && a.opts.MaxConns > 0 {
		n = min(n, max(0, a.opts.MaxConns+a.outside-(a.owned-a.due-a.evicting)))
	}
	missing := a.uncounted + a.lacking()
	if missing > 0 && a.fleet.Err() == nil {
		n += missing
	}
	if stays := missing > 0; stays != a.stays {
		a.stays = stays
		if f, ok := a.fleet.(stayer); ok {
			f.Stay(stays)
		}
	}
	a.fleet.Ask(n)
}

// stayer is a [Fleet] that a pool leaves by itself. [*engine.Pool] is one.
type stayer interface {
	// Stay: the pool is to be told when Redis is back, or the engine is closed, though it holds and asks for nothing.
	Stay(yes bool)
}

// settleIn settles again after d, or earlier. The lock is held.
func (a *Allotment) settleIn(d time.Duration) {
	d = max(d, time.Millisecond)
	at := time.Now().Add(d)
	if a.again != nil {
		if !at.Before(a.againAt) {
			return
		}
		a.again.Stop() // should it run all the same, it settles once more
	}
	a.againAt = at
	a.again = time.AfterFunc(d, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.againAt.Equal(at) {
			a.again = nil
		}
		if !a.closed {
			a.settle()
		}
	})
}

// keeps reports whether a permit that covers no connection stays for the next caller, who would else ask Redis for it. The lock is held.
func (a *Allotment) keeps() bool {
	if !a.opts.Detached || a.closed {
		return false
	}
	rest := keepDetached - time.Since(a.kept)
	if rest > 0 {
		a.settleIn(rest)
	}
	return rest > 0
}

// lacking is how many turns have nothing to stand on, because a spare permit or an idle connection that was free
// when they were given has lost its lease since. What is leaving comes back, so it is not missing. The lock is held.
func (a *Allotment) lacking() int {
	if a.openers.len() == 0 {
		return 0
	}
	return max(0, a.turns+a.evicting+a.due-a.owned)
}

// SetOutside tells how many connections live outside the pool for good (pgxpool's Hijack): they do not count
// against Options.MaxConns.
func (a *Allotment) SetOutside(n int) {
	a.mu.Lock()
	if n != a.outside {
		a.outside = n
		a.settle()
	}
	a.mu.Unlock()
}

// Crowded reports whether callers wait only because the pool may hold no more connections, and how many are out.
func (a *Allotment) Crowded() (n int, yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conns[out], a.opts.MaxConns > 0 && a.waiters.len() > 0 && a.owned >= a.opts.MaxConns+a.outside
}

// fallBack lets one more connection be opened without a permit, where FallbackConns allows it
// and Redis cannot be asked. The lock is held.
func (a *Allotment) fallBack() bool {
	if a.owned >= a.opts.FallbackConns || a.fleet.Err() == nil {
		return false
	}
	a.uncounted++
	a.owned++
	a.spare = append(a.spare, nil)
	return true
}

// giveSpare hands the newest spare permit to the fleet. The lock is held.
func (a *Allotment) giveSpare() {
	n := len(a.spare) - 1
	p := a.spare[n]
	a.spare = a.spare[:n]
	a.disown(p)
}

// disown drops one permit from those owned and releases it; nil stands for one that
// this process gave itself. The lock is held.
func (a *Allotment) disown(p *engine.Permit) {
	a.owned--
	if p == nil {
		a.uncounted--
		return
	}
	a.fleet.Give(p)
}

// mustEvict reports whether an idle connection has to end: because one was set aside for the fleet, because
// an opener waits for its permit, or because a caller waits who can have no idle one, as only their pool can end those (Pin). The
// second is an opener that found nothing idle in its pool although, by our count, a connection was just being returned. The lock is held.
func (a *Allotment) mustEvict() bool {
	return a.evicting > 0 ||
		(a.conns[idle] > 0 && a.openers.len() > a.conns[leaving]-a.due) ||
		(a.fixed > 0 && a.waiters.len() > 0)
}

// search ends idle connections while any has to end. It can come too early: a
// pool's return hook runs just before the connection is idle in it. It then tries again, unless
// a return has paid in the meantime.
func (a *Allotment) search() {
	pause := evictAgain
	for {
		a.mu.Lock()
		if a.closed || !a.mustEvict() {
			a.searching = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		if a.pool.Evict() {
			pause = evictAgain
			continue
		}
		time.Sleep(pause)
		pause = min(2*pause, evictAgainMost)
	}
}
