package redisscript

import (
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// Scenarios are steps that make a situation likely which single steps meet once in a million. Each
// was written because a fault that was put into package core on purpose stayed unnoticed.

// force decides the luck of the next messages of a kind.
func (s *session) force(what string, next ...luck) { s.forced[what] = next }

func (t *trial) takeScenario(s *session, st step) {
	if s.cut {
		return
	}
	switch st.do {
	case "cross":
		t.cross(s, st)
	case "refuse":
		t.refuse(s, st)
	case "lose calls":
		t.loseCalls(s, st)
	case "lose batch":
		if st.m%2 == 0 {
			t.lateFailure(s)
			return
		}
		t.makeRoom(s)
		s.force("batch", luck{fate: breaks}, luck{fate: breaks})
		t.want(s, message.Try, 0, s.plain(1)...)
	case "copies":
		t.copies(s)
	case "late push":
		t.latePush(s, st)
	case "orphan":
		t.orphan(s)
	case "reopen":
		t.reopen(s)
	}
}

// loseCalls has two calls of a session be lost that holds a permit. If messages do not get lost
// otherwise, it waits until no other fault can explain a lost lease: see survivesMishaps.
func (t *trial) loseCalls(s *session, st step) {
	if len(s.owned(nil, core.Held)) == 0 {
		t.makeHold(s)
	}
	if t.plan.faults == 0 {
		t.until(t.now + 3*t.plan.ttl)
	}
	t.say("%s loses two calls", s.name)
	lost := []fate{requestLost, answerLost}[st.n%2]
	s.force("call", luck{fate: lost}, luck{fate: lost})
	t.until(t.now + t.plan.ttl*5/4)
}

// refuse has Redis refuse a batch, because it does not know the session. The batch releases a
// permit and asks for one; another request follows while it is in flight.
func (t *trial) refuse(s *session, st step) {
	t.deleteKey(t.keys.all[3])
	t.reload()
	for _, s := range t.all() {
		s.disturbedAt = t.now // but nothing keeps the requests of s from their order
	}
	held := s.owned(nil, core.Held)
	for _, p := range s.pools {
		held = append(held, s.ofPool(p, core.Held)...)
	}
	if len(held) > 0 {
		t.giveBack(s, held[st.n%len(held)])
	}
	t.want(s, message.Wait, 0, s.plain(1)...)
	t.until(t.now)
	t.want(s, message.Wait, 0, s.plain(1)...)
}

// orphan has a request reach Redis a second time, after its caller has given it up and the session
// has withdrawn it. Redis grants it one day, and the session drops that grant.
func (t *trial) orphan(s *session) {
	if !t.makeWait(s) {
		return
	}
	s.force("batch", luck{fate: slow}, luck{fate: strayed, later: t.plan.ttl})
	r := t.want(s, message.Wait, 0, s.plain(1)...)
	t.until(t.now + t.plan.roundTrip)
	t.step(s, func(c *core.Core, now time.Duration) { c.Resubscribed(now) })
	t.until(t.now)
	t.giveUp(s, r)
}

// copies has Redis refuse a request, and then execute the first copy of its batch, whose connection
// broke: that grants what the session is told, a moment later, to be refused.
func (t *trial) copies(s *session) {
	roundTrip := t.plan.roundTrip
	if roundTrip > t.plan.ttl/20 || !t.makeWait(s) {
		return
	}
	t.giveUpAll()
	t.until(t.now + 2*roundTrip)
	other := t.holderBeside(s)
	if other == nil || len(t.before.Permits) < int(t.before.num("cap")) {
		return
	}
	if s.messages%2 == 0 {
		s.messages++ // so that the session notices at once: see send
	}
	s.force("batch", luck{fate: strayed, later: 2*roundTrip + 20*time.Millisecond},
		luck{fate: slow, back: 60 * time.Millisecond})
	t.want(s, message.Try, 0, s.plain(1)...)
	t.until(t.now + roundTrip*3/2 + 5*time.Millisecond)
	if held := other.owned(nil, core.Held); len(held) > 0 {
		t.release(other, held[0])
	}
}

// latePush has the last answer that tells a session the time of Redis's clock be late, and then the
// push of a grant. All that happens before the next regular call.
func (t *trial) latePush(s *session, st step) {
	if !t.makeWait(s) {
		return
	}
	roundTrip, late := t.plan.roundTrip, t.plan.ttl*3/20
	if st.m%2 == 0 {
		for range 2 { // the first slow answer is hedged, the second one is not
			s.force("call", luck{fate: slow, back: late})
			t.beat(s)
			t.until(t.now + roundTrip + late)
		}
	} else {
		t.beat(s)
		t.until(t.now + roundTrip)
		s.force("batch", luck{fate: slow, back: late})
		t.want(s, message.Wait, 0, s.plain(1)...)
		t.until(t.now + roundTrip + late)
	}
	s.force("push", luck{fate: slow, back: t.plan.ttl * 12 / 100})
	t.releaseBeside(s)
	t.until(t.now + roundTrip + late)
}

// lateFailure has the first copy of a batch fail long after the second one was answered, while
// another batch is in flight.
func (t *trial) lateFailure(s *session) {
	s.force("batch", luck{fate: requestLost})
	t.want(s, message.Wait, 0, s.plain(1)...)
	t.until(t.now + s.timeout - 20*time.Millisecond)
	s.force("batch", luck{fate: slow, back: 60 * time.Millisecond})
	t.want(s, message.Wait, 0, s.plain(1)...)
	t.until(t.now)
	t.want(s, message.Wait, 0, s.plain(1)...)
	t.until(t.now + 40*time.Millisecond)
}

// leaveUnsaid has a session leave while a batch is lost that releases a permit.
func (t *trial) leaveUnsaid(s *session) {
	if held := s.owned(nil, core.Held); len(held) > 0 {
		s.force("batch", luck{fate: requestLost})
		t.release(s, held[0])
		t.until(t.now)
	}
}

// reopen has a pool open a connection under a permit that covered another one. The new record is
// late, and another session looks for the old backend meanwhile.
func (t *trial) reopen(s *session) {
	var covering *permit
	for _, p := range s.permits {
		b := t.postgres[p.ID]
		if p.State() == core.Held && !p.connecting && b != nil && b.recorded {
			covering = p
		}
	}
	if covering == nil || t.plan.roundTrip > t.plan.ttl/20 {
		return
	}
	s.refused = true
	t.loseSubscription(s)
	for _, other := range t.all() {
		if other == s || other.paused || other.cut || !other.subscribed {
			continue
		}
		for _, p := range other.pools {
			if !p.gone && !other.leaves {
				t.ask(other, p, t.plan.capacity+3)
				break
			}
		}
	}
	t.until(t.now + time.Duration(oracleLook+1)*time.Millisecond)
	if covering.State() != core.Held || covering.connecting {
		return
	}
	s.force("record", luck{fate: slow, there: t.plan.ttl / 6})
	t.connect(s, covering)
	for _, other := range t.all() {
		if other != s && !other.paused {
			t.beat(other)
		}
	}
}

// withdraw has a pool ask for several permits, and want none any more while the reply is on its
// way.
func (t *trial) withdraw(s *session, p *pool, st step) {
	if p.gone {
		return
	}
	s.force("batch", luck{fate: slow, back: 100 * time.Millisecond})
	t.ask(s, p, p.want+2+st.m%3)
	t.at(t.now+time.Millisecond, s, func() {
		if !p.gone && p.want > 0 {
			t.ask(s, p, 0)
		}
	})
}

// seat has a pool that holds nothing ask while the reply to a call is on its way, which says that
// the pool may leave its session.
func (t *trial) seat(s *session, p *pool) {
	if p.gone || p.core.Held() > 0 || s.cut {
		return
	}
	t.ask(s, p, 0)
	t.until(t.now + 30*time.Millisecond) // until its request is withdrawn
	s.force("call", luck{fate: slow, back: 2*t.plan.roundTrip + 20*time.Millisecond})
	t.beat(s)
	t.until(t.now)
	if !s.paused && !p.gone {
		t.ask(s, p, 1)
	}
}

// giveAllAtOnce has a pool give all back while a call that says otherwise is late on its way to
// Redis.
func (t *trial) giveAllAtOnce(s *session, p *pool, st step) {
	if len(s.ofPool(p, core.Held)) == 0 || s.cut {
		return
	}
	late := []time.Duration{20 * time.Millisecond, t.plan.ttl / 4}[st.m%2]
	s.force("call", luck{fate: slow, there: t.plan.roundTrip + late})
	t.beat(s)
	t.until(t.now)
	t.giveAll(s, p)
}

// freeze stops a process, mostly for a lease or longer. Where pools record backends,
// its session covers one, and so does another session, which is to end it. In half of the cases an
// answer is about to extend a lease.
func (t *trial) freeze(s *session, st step) {
	if other := t.beside(s); t.plan.fence && other != nil {
		t.cover(other)
		t.cover(s)
	}
	if st.m%2 == 0 && !s.dead && !s.paused && !s.leaves {
		if len(s.owned(nil, core.Held)) == 0 {
			t.makeHold(s)
		}
		if held := s.owned(nil, core.Held); len(held) > 0 {
			s.force("batch", luck{fate: slow, back: 50 * time.Millisecond})
			t.extend(s, held[0], 0)
			t.until(t.now) // the answer may find that the lease is over
		}
	}
	if s.dead || s.paused || s.leaves {
		return
	}
	t.pause(s)
	if st.m%2 == 0 || st.n%2 == 0 {
		long := t.plan.ttl * time.Duration(10+st.n%20) / 10
		t.at(t.now+long, nil, func() { t.resume(s) })
	}
}
