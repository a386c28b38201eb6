package redisscript

import (
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The situations in which scenarios begin: a session holds a permit, or waits for one, and another
// session is there. Where a round trip takes much of a lease, none of them comes about.

// makeRoom has the next request of s granted at once, if it can. All give up what they wait for, an
// operator's pause ends, and if all permits are held, a session gives one back.
func (t *trial) makeRoom(s *session) {
	if t.plan.roundTrip > t.plan.ttl/20 {
		return // it would take a lease
	}
	t.giveUpAll()
	if _, paused := t.before.operatorPause(t.scriptClock()); paused && t.operatorMayAct() {
		t.resumeGrants()
	}
	var held []*permit
	for _, other := range t.all() {
		if other.paused || other.cut {
			continue
		}
		held = append(held, other.owned(nil, core.Held)...)
		for _, p := range other.pools {
			held = append(held, other.ofPool(p, core.Held)...)
		}
	}
	if len(t.before.Permits) >= int(t.before.num("cap")) && len(held) > 0 {
		covers := func(p *permit) bool { return t.postgres[p.ID] != nil }
		p := held[0]
		if without := slices.DeleteFunc(slices.Clone(held), covers); len(without) > 0 {
			p = without[0]
		}
		t.giveBack(t.named(sessionOf(p.ID)), p)
	}
	t.until(t.now + 30*time.Millisecond + t.plan.roundTrip) // pools withdraw a little later
}

// giveUpAll has all callers and pools give up what they wait for.
func (t *trial) giveUpAll() {
	for _, s := range t.all() {
		if s.paused || s.cut {
			continue
		}
		for _, r := range slices.Clone(s.requests) {
			t.giveUp(s, r)
		}
		for _, p := range s.pools {
			if !p.gone {
				t.ask(s, p, 0)
			}
		}
	}
}

// makeHold has a session hold a permit that no pool holds, if it can.
func (t *trial) makeHold(s *session) {
	t.makeRoom(s)
	t.want(s, message.Wait, 0, s.plain(1)...)
	t.until(t.now + t.plan.roundTrip)
}

// makeWait has a session wait at the head of Redis's queue, while another one holds a permit that
// no pool holds. It reports false if that does not come about.
func (t *trial) makeWait(s *session) bool {
	if t.plan.roundTrip > t.plan.ttl/20 {
		return false // it would take leases
	}
	switch other := t.beside(s); {
	case t.holderBeside(s) == nil && other != nil:
		t.makeHold(other)
	case len(t.before.Queue) > 0:
		t.makeRoom(s)
	}
	if t.holderBeside(s) == nil {
		return false
	}
	return t.askUntilQueued(s)
}

// askUntilQueued has a session ask for permits until a request waits in Redis's queue.
func (t *trial) askUntilQueued(s *session) bool {
	for range t.plan.capacity + 3 {
		t.want(s, message.Wait, 0, s.plain(1)...)
		t.until(t.now + t.plan.roundTrip)
		for _, r := range s.requests {
			if r.seen && r.Kind == message.Wait {
				return true
			}
		}
	}
	return false
}

// beside returns another session that can ask for permits. If there is none, one joins. It returns
// nil if none can.
func (t *trial) beside(s *session) *session {
	for _, other := range t.all() {
		if other != s && !other.paused && !other.cut && !other.leaves {
			return other
		}
	}
	for slot, taken := range t.sessions {
		if taken == nil {
			t.join(slot, joining{capacity: t.plan.capacity, weight: 1})
			return t.sessions[slot]
		}
	}
	return nil
}

// holderBeside returns another session that holds a permit which no pool holds, or nil.
func (t *trial) holderBeside(s *session) *session {
	for _, other := range t.all() {
		if other != s && !other.paused && !other.cut && len(other.owned(nil, core.Held)) > 0 {
			return other
		}
	}
	return nil
}

// releaseBeside has another session release a permit that no pool holds.
func (t *trial) releaseBeside(s *session) {
	if other := t.holderBeside(s); other != nil {
		t.release(other, other.owned(nil, core.Held)[0])
	}
}

// makeRecallable has a pool of s hold a permit that it does not owe, and returns that pool. It
// returns nil if that does not come about, or if the operator may not act, who is to recall it.
func (t *trial) makeRecallable(s *session) *pool {
	if t.plan.roundTrip > t.plan.ttl/20 {
		return nil // it would take leases
	}
	holder := func() *pool {
		for _, p := range s.pools {
			if len(s.ofPool(p, core.Held)) > p.owed {
				return p
			}
		}
		return nil
	}
	if len(s.pools) == 0 {
		t.newPool(s)
	}
	if holder() == nil && len(s.pools) > 0 && !s.pools[0].gone {
		t.makeRoom(s)
		t.ask(s, s.pools[0], 1)
		t.until(t.now + t.plan.roundTrip + maxLateness)
	}
	if s.dead || s.leaves || s.paused || s.cut || !s.subscribed || !t.operatorMayAct() {
		return nil
	}
	return holder()
}

// cover has a session hold a permit under which a backend is recorded, if it can.
func (t *trial) cover(s *session) {
	covers := func(p *permit) bool {
		b := t.postgres[p.ID]
		return p.State() == core.Held && b != nil && b.recorded
	}
	if slices.ContainsFunc(s.permits, covers) || len(s.pools) == 0 || s.pools[0].gone {
		return
	}
	p := s.pools[0]
	if len(s.ofPool(p, core.Held)) == 0 {
		t.makeRoom(s)
		t.ask(s, p, 1)
		t.until(t.now + t.plan.roundTrip + maxLateness)
	}
	if held := s.ofPool(p, core.Held); len(held) > 0 && !s.paused && !s.dead {
		t.connect(s, held[0])
		t.until(t.now + 2*t.plan.roundTrip)
	}
}
