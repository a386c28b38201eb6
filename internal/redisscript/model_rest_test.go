package redisscript

import (
	"maps"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// The end of a trial: everything works again, and all returns.

func (t *trial) must(err error) {
	if err != nil {
		t.failf("bug in the test: %v", err)
	}
}

// finish brings a history to its end. All sessions are reached again, what is owed is paid, what is waited for
// is granted, and then all leave or die.
func (t *trial) finish() {
	t.say("-- the end: everything works again")
	t.calm, t.stalledUntil = true, 0
	for _, s := range t.all() {
		t.resume(s)
		t.heal(s)
		if s.refused = false; !s.subscribed {
			t.subscribe(s)
		}
	}
	for range 12 { // what is on its way needs up to two leases, and what it brings back lasts for another one
		t.rest()
		t.until(t.now + t.plan.ttl/3)
	}
	t.rest()
	// By now every count has been put right, whatever happened.
	t.damaged = false
	clear(t.adrift)
	queued := make(map[string]bool) // what went astray there is granted one day, and dropped then
	for request := range t.before.Queue {
		_, ids := parsed(request)
		queued[ids[0]] = true
	}
	maps.DeleteFunc(t.astray, func(id string, _ bool) bool { return !queued[id] })
	for sharer := range t.before.sharers() {
		if !t.before.isLive(sessionOf(sharer), t.scriptClock()) {
			t.adrift[sharer] = true // until the next heartbeat of anybody
		}
	}
	t.checkCounts(t.before, act{name: "the end"})
	t.checkAtRest()
	t.checkLeak(false)

	t.say("-- all give back what they hold")
	t.checkWaiters()
	t.checkLeak(true)

	t.say("-- all leave, or die")
	for slot, s := range t.sessions {
		switch {
		case s == nil:
		case slot%2 == 0:
			t.close(slot, false)
		default:
			t.crash(slot, true)
		}
	}
	t.until(t.now + 3*t.plan.ttl + 2*time.Second)
	t.passBy()
	t.until(t.now + 2*t.plan.ttl)
	if len(t.before.Quarantine) > 0 {
		t.say("-- an hour passes")
		t.now += time.Duration(oracleAsked+1) * time.Millisecond
		t.passBy()
	}
	left := t.before.clone()
	left.Meta = nil
	if d := left.diff(&state{}); d != "" {
		t.failf("leak: left behind when nobody is there:\n%s", d)
	}
	if t.before.num("count") != 0 || t.before.num("reserve") != 0 {
		t.failf("leak: left behind when nobody is there: %v", t.before.Meta)
	}
}

// passBy has a session join, and leave two leases later.
func (t *trial) passBy() {
	t.join(0, joining{capacity: t.plan.capacity, weight: 1})
	t.until(t.now + 2*t.plan.ttl)
	t.close(0, false)
	t.until(t.now + 4*time.Second)
}

// rest lets all pay and hear until nothing moves.
func (t *trial) rest() {
	for range 100 {
		calls := t.calls
		t.until(t.now)
		for _, s := range t.all() {
			for _, p := range s.pools {
				t.pay(s, p)
			}
		}
		t.until(t.now)
		if t.calls == calls {
			return
		}
	}
	t.failf("rest: permits move for ever")
}

// checkAtRest: when nothing moves any more, no pool that waits has a claim to what another one holds.
func (t *trial) checkAtRest() {
	s := t.before
	o := begin(s, t.clock(), 0, t.place.sharded(), nil)
	for _, request := range s.line() {
		_, ids := parsed(request)
		if !isShared(ids[0]) {
			return // it cannot be told apart from one that holds nothing; those before it had no claim
		}
		if !s.isLive(sessionOf(ids[0]), o.now) {
			continue
		}
		waiter := sharerOf(ids[0])
		for holder := range s.Shares {
			gives, has := o.share(holder), o.share(waiter)
			if lacks, ok := o.lacking(sessionOf(holder)); holder == waiter || ok && lacks >= 0 || !s.isLive(sessionOf(holder), o.now) {
				continue
			}
			// After it gave one it would still have no less for its weight than the waiter with one more.
			if (gives-1)*weightOf(waiter) >= (has+1)*weightOf(holder) {
				t.failf("rest: %s holds %d, and %s, which waits, %d", holder, gives, waiter, has)
			}
		}
	}
}

// checkWaiters: once the others give back, all that wait are granted.
func (t *trial) checkWaiters() {
	t.returning = true
	end := t.now + 3*t.plan.ttl + 2*time.Second
	if t.plan.fence { // a backend that nobody can end is counted for so long
		end += time.Duration(oracleBound+oracleBehind) * time.Millisecond
	}
	for ; t.now < end && t.waiters() > 0; t.until(t.now + 50*time.Millisecond) {
		for _, s := range t.all() {
			t.giveBack(s)
		}
	}
	if t.waiters() > 0 {
		for _, s := range t.all() {
			for _, r := range s.requests {
				if r.Kind.Waits() && !t.keptFromOthers() {
					t.failf("waiters: %s waits for %s, and everybody gives back", s.name, ids(r.Permits))
				}
			}
		}
	}
	for _, s := range t.all() {
		for len(s.requests) > 0 {
			before := len(s.requests)
			t.giveUp(s, s.requests[0])
			if len(s.requests) == before {
				break
			}
		}
		for _, p := range s.pools {
			if !p.gone {
				t.ask(s, p, 0)
			}
		}
		t.giveBack(s)
	}
	t.until(t.now + t.plan.ttl)
}

func (t *trial) waiters() (n int) {
	for _, s := range t.all() {
		for _, r := range s.requests {
			if r.Kind.Waits() {
				n++
			}
		}
	}
	return n
}

// giveBack gives back all that a session holds.
func (t *trial) giveBack(s *session) {
	for _, held := range s.mine(nil, core.Held, core.Lost) {
		t.release(s, held)
	}
	for _, p := range s.pools {
		for _, held := range s.ofPool(p, core.Held, core.Lost) {
			t.give(s, p, held)
		}
	}
}

// keptFromOthers reports whether somebody waits for more than minima leave. What is behind it waits, too.
func (t *trial) keptFromOthers() bool {
	for _, s := range t.all() {
		room := t.before.num("cap")
		for session, n := range minima(t.before) {
			if session != "min "+s.name {
				room -= n
			}
		}
		for _, r := range s.requests {
			n := int64(len(r.Permits))
			if r.Kind.Waits() && (n > room && r.Pool == nil || room <= 0) {
				return true
			}
		}
	}
	return false
}

// checkLeak: what Redis counts for a session that lives, it holds. all: everything was given back.
func (t *trial) checkLeak(all bool) {
	for _, s := range t.all() {
		t.checkAccount(s)
		for _, d := range s.dropping {
			if s.core.Accounts(d.id) {
				t.failf("leak: %s has not said of %s that it is released", s.name, d.id)
			}
		}
		if all && s.core.Held() > 0 {
			t.failf("leak: %s holds %d permits, and has given all back", s.name, s.core.Held())
		}
	}
	for id := range t.before.Permits {
		_, quarantined := t.before.Quarantine[id]
		s := t.named(sessionOf(id))
		if s == nil || quarantined || t.ends[id] <= t.now {
			continue
		}
		if p := s.permitOf(id); p == nil || p.State() != core.Held {
			t.failf("leak: Redis counts %s, which %s does not hold", id, s.name)
		}
	}
}
