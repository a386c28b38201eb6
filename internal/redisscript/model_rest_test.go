package redisscript

import (
	"maps"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// The end of a history. Everything works again, and all is given back.

// finish brings a history to its end. All sessions are reached again, pools give what they owe,
// requests are granted, and then the sessions leave or die.
func (t *trial) finish() {
	t.say("-- the end: everything works again")
	t.faultless, t.stalledUntil = true, 0
	for _, s := range t.all() {
		t.resume(s)
		t.heal(s)
		if s.refused = false; !s.subscribed {
			t.subscribe(s)
		}
	}
	// Messages on their way need up to two leases. A lease that they bring back lasts as long again.
	for range 12 {
		t.resumeAtEnd()
		t.rest()
		t.until(t.now + t.plan.ttl/3)
	}
	t.rest()
	if len(t.all()) > 0 { // else no heartbeat repairs what was done by hand
		t.expectCounts()
		t.checkCounts(t.before, act{name: "the end"})
	}
	t.checkRest()
	t.checkLeak(false)

	t.say("-- all give back what they hold")
	t.returnAll()
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
	t.checkEmpty()
}

// expectCounts ends the exceptions: by now heartbeats have corrected every count.
func (t *trial) expectCounts() {
	t.damaged = false
	clear(t.miscounted)
	for pool := range t.before.pools() {
		if !t.before.isLive(sessionOf(pool), t.scriptClock()) {
			t.miscounted[pool] = t.now // until the next heartbeat of any session
		}
	}
	// A request in the queue that its session has given up is granted one day, and dropped then.
	queued := idsOf(keysInOrder(t.before.Queue))
	maps.DeleteFunc(t.excused, func(id string, _ bool) bool { return !slices.Contains(queued, id) })
}

// passBy has a session join, and leave two leases later.
func (t *trial) passBy() {
	t.join(0, joining{capacity: t.plan.capacity, weight: 1})
	t.until(t.now + 2*t.plan.ttl)
	t.close(0, false)
	t.until(t.now + 4*time.Second)
}

// rest has pools give what they owe until nothing moves any more.
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

// returnAll has every session give back what it holds and is granted, until no request waits. Then
// no caller wants anything any more.
func (t *trial) returnAll() {
	t.returning = true
	end := t.now + 3*t.plan.ttl + 2*time.Second
	if t.plan.fence { // a backend that nobody can end is counted for that long
		end += time.Duration(oracleBound+oracleBehind) * time.Millisecond
	}
	for ; t.now < end && t.waits(); t.until(t.now + 50*time.Millisecond) {
		for _, s := range t.all() {
			t.returnAllOf(s)
		}
	}
	t.checkWaiters()
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
		t.returnAllOf(s)
	}
	t.until(t.now + t.plan.ttl)
}

// waits reports whether a request waits.
func (t *trial) waits() bool {
	return slices.ContainsFunc(t.all(), func(s *session) bool {
		return slices.ContainsFunc(s.requests, func(r *request) bool { return r.Kind.Waits() })
	})
}

// returnAllOf gives back all that a session holds or has lost.
func (t *trial) returnAllOf(s *session) {
	for _, held := range s.owned(nil, core.Held, core.Lost) {
		t.release(s, held)
	}
	for _, p := range s.pools {
		for _, held := range s.ofPool(p, core.Held, core.Lost) {
			t.give(s, p, held)
		}
	}
}
