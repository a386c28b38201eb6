package redisscript

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The steps of a history.

func (t *trial) take(s step) {
	p := t.sessions[s.who]
	switch s.do {
	case "join":
		if p == nil {
			t.takeJoin(s)
		}
	case "advance":
		ttl := t.plan.ttl
		by := []time.Duration{
			time.Millisecond, 7 * time.Millisecond, 30 * time.Millisecond, 60 * time.Millisecond,
			60 * time.Millisecond, 110 * time.Millisecond, 110 * time.Millisecond,
			250 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, ttl,
			2*ttl + 10*time.Millisecond,
		}[s.n%12]
		t.say("%v pass", by)
		t.until(t.now + by)
		for _, s := range t.all() {
			t.tickEarly(s)
		}
	case "stall":
		ttl := t.plan.ttl
		t.stall([]time.Duration{
			3 * time.Millisecond, 50 * time.Millisecond, ttl / 4, ttl, ttl * 3 / 2,
		}[s.n%5])
	case "snapshot":
		t.snapshot()
	case "flush", "delete", "revoke", "set clock", "capacity", "other takes", "other gives":
		t.outside(s)
	case "operator pauses", "drains", "resumes", "evicts", "revokes":
		t.operate(s)
	default:
		if p != nil {
			t.takeOf(p, s)
		}
	}
}

func (t *trial) takeJoin(s step) {
	t.join(s.who, t.plan.joiningOf(s))
	joined := t.sessions[s.who]
	if joined == nil || !t.plan.pools {
		return
	}
	pools := s.m % 3
	if t.plan.fence {
		pools = 1 + s.m%2
	}
	for range pools {
		t.newPool(joined)
	}
}

// takeOf takes a step of one session. Most steps need a process that runs.
func (t *trial) takeOf(p *session, s step) {
	switch s.do {
	case "resume":
		t.resume(p)
	case "heal":
		t.heal(p)
	case "cut":
		if !p.cut {
			t.cutOff(p, s.n%2 == 0)
		}
	case "unsubscribe":
		t.say("%s loses its subscription", p.name)
		p.refused = true
		t.loseSubscription(p)
	case "lose pushes":
		t.losePushes(p)
	case "crash":
		t.crash(s.who, s.n%2 == 0)
	default:
		if !p.paused {
			t.takeOfRunning(p, s)
		}
	}
}

func (t *trial) takeOfRunning(p *session, s step) {
	switch s.do {
	case "want":
		t.takeWant(p, s)
	case "release":
		all := p.owned(nil, core.Held, core.Lost)
		for _, pool := range p.pools {
			all = append(all, p.ofPool(pool, core.Held, core.Lost)...)
		}
		if len(all) > 0 {
			t.giveBack(p, all[s.n%len(all)])
		}
	case "cancel":
		if len(p.requests) > 0 && s.m%3 > 0 {
			t.giveUp(p, p.requests[s.n%len(p.requests)])
		} else if len(p.pools) > 0 && !p.pools[s.n%len(p.pools)].gone {
			t.ask(p, p.pools[s.n%len(p.pools)], 0)
		}
	case "tick":
		t.tickEarly(p)
	case "beat":
		t.beat(p)
	case "resubscribe":
		t.loseSubscription(p)
		t.subscribe(p)
	case "subscribe":
		p.refused = false
		if !p.subscribed {
			t.say("%s is subscribed again", p.name)
			t.subscribe(p)
		}
	case "pause":
		t.freeze(p, s)
	case "leave":
		if s.n%6 == 0 && !p.cut {
			t.leaveUnsaid(p)
		}
		hasty := s.n%3 == 0
		if hasty && t.plan.fence {
			t.cover(p)
		}
		if t.sessions[s.who] == p {
			t.close(s.who, hasty)
		}
	case "new pool":
		if len(p.pools) < 4 {
			t.newPool(p)
		}
	case "cross", "refuse", "lose calls", "lose batch", "orphan", "copies", "late push", "reopen":
		t.takeScenario(p, s)
	default:
		if len(p.pools) > 0 {
			t.takeOfPool(p, p.pools[s.n%len(p.pools)], s)
		}
	}
}

// beat has a session send a call of the heartbeat now.
func (t *trial) beat(s *session) {
	t.step(s, func(c *core.Core, _ time.Duration) { c.BeatSoon() })
}

// giveBack gives back a permit, of a pool or of none.
func (t *trial) giveBack(s *session, p *permit) {
	if p.Pool != nil {
		t.give(s, p.Pool.Owner.(*pool), p)
	} else {
		t.release(s, p)
	}
}

func (t *trial) takeOfPool(s *session, p *pool, st step) {
	held := s.ofPool(p, core.Held)
	switch st.do {
	case "pay":
		t.pay(s, p)
	case "offer":
		if n := len(held) - p.owed; n > 0 {
			t.step(s, func(c *core.Core, now time.Duration) { c.Offer(now, &p.core, 1+st.m%n) })
		}
	case "connect":
		if len(held) > 0 {
			t.connect(s, held[st.m%len(held)])
		}
	case "close pool":
		if !p.gone {
			t.closePool(s, p)
		}
	case "withdraw":
		t.withdraw(s, p, st)
	case "give all":
		t.giveAllAtOnce(s, p, st)
	case "seat":
		t.seat(s, p)
	default:
		panic("bug: no such step: " + st.do)
	}
}

// takeWant has a caller or a pool ask for permits. Most callers are patient.
func (t *trial) takeWant(s *session, st step) {
	kind := st.m % 10
	if t.plan.fence && kind < 6 || t.plan.looks && kind == 6 {
		kind = 9 // only pools cover backends
	}
	ttl := t.plan.ttl
	patience := []time.Duration{0, 0, 0, ttl, ttl / 3, time.Millisecond}[st.n%6]
	switch kind {
	default:
		t.want(s, message.Wait, patience, s.plain(1)...)
	case 4, 5:
		t.want(s, message.Try, patience, s.plain(1)...)
	case 6:
		if n := 2 + st.n%2; s.joining.max == 0 || n <= s.joining.max {
			t.want(s, message.Wait, patience, s.plain(n)...)
		}
	case 7:
		if held := s.owned(nil, core.Held); len(held) > 0 {
			t.extend(s, held[st.n%len(held)], patience)
		}
	case 0, 8, 9:
		if len(s.pools) > 0 {
			t.takeWantOfPool(s, s.pools[st.n%len(s.pools)], st)
		}
	}
}

// extend asks for a new lease of a permit, unless a request for it is there already.
func (t *trial) extend(s *session, p *permit, patience time.Duration) {
	if s.requestOf(p.ID) == nil {
		t.want(s, message.Hold, patience, &p.Permit)
	}
}

func (t *trial) takeWantOfPool(s *session, p *pool, st step) {
	switch {
	case p.gone:
	case st.m%13 == 0:
		var r *core.Request
		t.step(s, func(c *core.Core, _ time.Duration) { r = c.PoolRequest(&p.core) })
		if r != nil {
			t.tryFor(s, p, r)
		}
	default:
		t.ask(s, p, min(p.want+1+st.n%4, 20))
	}
}

// outside takes a step of others than the sessions.
func (t *trial) outside(s step) {
	switch s.do {
	case "flush":
		t.say("FLUSHALL")
		t.must(t.place.do("FLUSHALL"))
	case "delete":
		key := t.keys.all[s.n%len(t.keys.all)]
		if s.m%3 == 0 {
			key = t.keys.all[3] // the sessions: Redis refuses the next batch, and loses nothing else
		}
		if t.damaged || len(t.before.Permits) <= 1 && key == t.keys.all[0] {
			// If two keys are gone, nothing may tell what they held. And one permit that is missing
			// counts as revoked.
			return
		}
		t.deleteKey(key)
	case "revoke":
		if len(t.before.Permits) < 2 {
			return
		}
		t.revoke(byScore(t.before.Permits)[s.n%len(t.before.Permits)], s)
	case "set clock":
		by := []int64{3600_000, -3600_000, 5000, -5000, 1500, -1500, 86400_000}[s.n%7]
		t.say("Redis's clock is set by %d ms", by)
		t.set += by
		// A Redis that was stopped counts on from where it was. A session that does not know that
		// yet expects a later time. Scripts believe it if the clock is set just then.
		for _, p := range t.all() {
			t.unnoticed = t.unnoticed || t.expected(p)-t.scriptClock() > t.ttlMillis()*8/100
		}
		return
	case "capacity":
		if p := t.sessions[s.who]; p != nil && !p.cut && !p.paused {
			t.setCapacity(p, s.n%(t.plan.capacity+3))
		}
		return
	case "other takes":
		t.otherTakes(s.n)
	case "other gives":
		for _, id := range byScore(t.before.Permits) {
			if !isOurs(id) {
				t.say("another client gives %s back", id)
				t.must(t.place.do("ZREM", t.keys.all[0], id))
				break
			}
		}
	}
	t.changed()
}

// changed takes notice of a change that no script has made.
func (t *trial) changed() {
	t.reload()
	t.lossesUntil = t.now + t.plan.ttl
	for _, s := range t.all() {
		s.disturbed(t)
	}
}

func (t *trial) deleteKey(key string) {
	t.say("DEL %s", key)
	t.must(t.place.do("DEL", key))
	t.damaged = true
}

// revoke removes a permit by hand. Its holder may ask to extend it, before any call tells that it
// is gone.
func (t *trial) revoke(id string, st step) {
	t.say("ZREM %s by hand", id)
	t.must(t.place.do("ZREM", t.keys.all[0], id))
	t.damaged, t.tampered, t.byHand[id] = true, true, true
	t.revoked[id], t.revokedIn[id] = true, t.before.Meta["epoch"]
	if s := t.named(sessionOf(id)); s != nil && !s.paused && !s.leaves && st.m%2 == 0 {
		if p := s.permitOf(id); p != nil && p.State() == core.Held {
			t.extend(s, p, 0)
		}
	}
}

// otherTakes does as a client of the original does: it removes permits that expired long ago, and
// takes one if fewer are held than the capacity.
func (t *trial) otherTakes(n int) {
	const patience = 1000
	held := len(t.before.Permits)
	for id, expiry := range t.before.Permits {
		if expiry < t.clock()-patience {
			t.must(t.place.do("ZREM", t.keys.all[0], id))
			held--
			if isOurs(id) {
				t.damaged = true
			}
		}
	}
	if int64(held) < t.before.num("cap") {
		t.foreign++
		group := []string{"8000", "8a69"}[n%2]
		id := fmt.Sprintf("%08x-0000-4000-%s-%012x", t.foreign, group, t.foreign)
		t.say("another client takes %s", id)
		t.must(t.place.do("ZADD", t.keys.all[0], t.clock()+int64(500+n), id))
	}
}
