package redisscript

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// A step of a history. What its numbers mean depends on what is there when it is taken, so that steps can be left out: one that means
// nothing any more does nothing.
type step struct {
	do   string
	who  int
	n, m int
	fate fate
}

// newPlan makes the history of a seed.
func newPlan(seed uint64, length int) *plan {
	r := rand.New(rand.NewPCG(seed, 1))
	some := func(percent int) bool { return r.IntN(100) < percent }
	p := &plan{seed: seed, capacity: 1 + r.IntN(6), ttl: []int64{1000, 2000, 3000}[r.IntN(3)]}
	p.pools, p.minima, p.late, p.cuts = some(60), some(35), some(50), some(35)
	p.losses, p.clocks, p.operator, p.others = some(25), some(20), some(40), some(15)
	// A clock that was set means nothing to clients that use another; and nobody else re-asserts what they hold.
	p.others = p.others && !p.clocks && !p.losses
	p.fence = p.pools && some(60)
	if p.deaf = p.fence && some(80); p.deaf {
		p.capacity = max(p.capacity, 3)
	}
	// Who is cut off cannot say again what it holds, and a newcomer cannot know that. Nor can it of
	// one that does not listen.
	p.windows = p.losses && (p.cuts || p.deaf)

	type choice struct {
		do     string
		weight int
	}
	choices := []choice{{"want", 30}, {"release", 22}, {"look", 6}, {"beat", 6}, {"advance", 18}, {"hear", 8}, {"miss", 2}, {"withdraw", 4},
		{"join", 5}, {"leave", 2}, {"crash", 1}, {"land", 4}, {"snapshot", 1}}
	if p.pools {
		choices = append(choices, choice{"pay", 8}, choice{"offer", 6})
	}
	if p.fence {
		choices = append(choices, choice{"cover", 24}, choice{"dial", 8}, choice{"crash", 1})
	}
	if p.deaf { // somebody looks for backends only where two hold some, one of them does not listen, and somebody waits
		choices = []choice{{"want", 40}, {"release", 7}, {"look", 6}, {"beat", 4}, {"advance", 14}, {"hear", 12}, {"withdraw", 2}, {"join", 8},
			{"leave", 1}, {"crash", 2}, {"land", 4}, {"pay", 5}, {"offer", 2}, {"cover", 16}, {"dial", 8}, {"deafen", 10}, {"listen", 3}}
	}
	if p.late {
		choices = append(choices, choice{"stray", 4})
	}
	if p.cuts {
		choices = append(choices, choice{"cut", 2}, choice{"heal", 2})
	}
	if p.losses {
		choices = append(choices, choice{"flush", 2}, choice{"delete", 1}, choice{"revoke", 1})
	}
	if p.clocks {
		choices = append(choices, choice{"set clock", 1})
	}
	if p.operator {
		choices = append(choices, choice{"capacity", 3})
	}
	if p.others {
		choices = append(choices, choice{"other takes", 6}, choice{"other gives", 3})
	}
	sum := 0
	for _, c := range choices {
		sum += c.weight
	}
	for i := range length {
		s := step{who: r.IntN(4), n: r.IntN(1000), m: r.IntN(1000)}
		if i < 2 {
			s.do, s.who = "join", i
		} else {
			at := r.IntN(sum)
			for _, c := range choices {
				if at -= c.weight; at < 0 {
					s.do = c.do
					break
				}
			}
		}
		if some(25) {
			s.fate = fate(1 + r.IntN(5))
			switch {
			case s.fate == strayed && !p.late:
				s.fate = replyLost
			case s.do == "beat" && p.late && p.losses && some(50): // what it asserts may be of a state that is lost by then
				s.fate = strayed
			}
		}
		p.steps = append(p.steps, s)
	}
	return p
}

// step takes one. What pools were granted they connect for, mostly at once.
func (t *trial) step(s step) {
	t.take(s)
	for _, p := range t.peers {
		if p == nil || p.cut || !t.plan.deaf || s.m%4 == 0 {
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(p.held)) {
			if said := p.backends[id]; isShared(id) && (said == "" || said[0] == '0' && s.m%4 > 1) {
				t.cover(p, id, arrives)
			}
		}
	}
}

func (t *trial) take(s step) {
	p := t.peers[s.who]
	switch s.do {
	case "join":
		if p == nil {
			minimum, weight, pools, most := 0, 1, 0, 0
			if t.plan.minima && s.n%2 == 0 {
				minimum = s.n / 2 % (t.plan.capacity + 1)
			}
			if t.plan.pools {
				pools = s.m % 3
				if t.plan.fence {
					pools = 1 + s.m%2
				}
				weight = []int{1, 1, 1, 2, 3, 10}[s.n%6]
			}
			if s.m%7 == 0 {
				most = 1 + s.m%3
			}
			capacity := t.plan.capacity
			if s.m%5 == 0 {
				capacity += s.n % 3
			}
			t.join(s.who, capacity, minimum, weight, pools, most)
		}
		return
	case "advance":
		t.advance([]int64{1, 7, 30, 60, 60, 110, 110, 250, 250, 500, t.plan.ttl, 2*t.plan.ttl + 10}[s.n%12])
		return
	case "stray":
		if len(t.strays) > 0 {
			i := s.n % len(t.strays)
			late := t.strays[i]
			t.strays = slices.Delete(t.strays, i, i+1)
			t.strayArrives(late)
		}
		return
	case "snapshot":
		t.snapshot()
		return
	case "flush", "delete", "revoke", "set clock", "capacity", "other takes", "other gives":
		t.outside(s)
		return
	}
	if p == nil {
		return
	}
	switch s.do {
	case "want":
		t.want(p, s)
	case "release":
		if all := append(slices.Sorted(maps.Keys(p.held)), p.lost...); len(all) > 0 {
			t.gone(p, all[s.n%len(all)])
			t.fly(p, s.fate)
		}
	case "withdraw":
		if len(p.wants) > 0 {
			p.withdraw(p.wants[s.n%len(p.wants)])
			t.fly(p, s.fate)
		}
	case "pay":
		t.pay(p, s.fate)
	case "offer":
		if len(p.pools) > 0 {
			pool := p.pools[s.n%len(p.pools)]
			if n := len(p.heldOf(pool)) - p.owed[pool]; n > 0 {
				p.offerer, p.offered = pool, 1+s.m%n
				t.fly(p, s.fate)
			}
		}
	case "cover", "dial":
		var ids []string
		for _, pool := range p.pools {
			ids = append(ids, p.heldOf(pool)...)
		}
		switch {
		case len(ids) == 0:
		case s.do == "dial":
			t.dial(p, ids[s.m%len(ids)], s.fate)
		default:
			t.cover(p, ids[s.m%len(ids)], s.fate)
		}
	case "deafen":
		t.say("%s loses its subscription", p.session)
		p.deaf, p.inbox = true, nil
		t.place.deafen(p.session)
	case "listen":
		t.listenAgain(p)
	case "look":
		p.repeat()
		t.fly(p, s.fate)
	case "beat":
		t.beat(p, s.fate)
	case "hear":
		t.hear(p)
	case "miss":
		p.inbox = nil
	case "land":
		t.landPulse(p)
		t.land(p)
	case "cut":
		t.say("%s is cut off", p.session)
		p.cut, p.inbox = true, nil
		t.place.deafen(p.session)
	case "heal":
		t.heal(p, s.n%2 == 0)
	case "leave":
		t.leaves(s.who, s.fate)
	case "crash":
		t.crash(s.who, s.n%2 == 0)
	default:
		panic("bug: no such step: " + s.do)
	}
}

func (t *trial) want(p *peer, s step) {
	w := &want{out: true}
	kind := s.m % 10
	if t.plan.fence && kind < 6 || t.plan.deaf && kind == 6 {
		kind = 9 // for pools cover backends
	}
	switch kind {
	default:
		w.kind, w.ids = Wait, []string{p.id(p.plain())}
	case 4, 5:
		w.kind, w.ids = Try, []string{p.id(p.plain())}
	case 6:
		w.kind = Wait
		for range 2 + s.n%2 {
			w.ids = append(w.ids, p.id(p.plain()))
		}
	case 7:
		held := slices.Sorted(maps.Keys(p.held))
		if len(held) == 0 || p.wantOf(held[s.n%len(held)]) != nil {
			return
		}
		w.kind, w.extends, w.ids = Hold, true, []string{held[s.n%len(held)]}
	case 0, 8, 9:
		if len(p.pools) == 0 {
			return
		}
		w.kind, w.pool = Share, p.pools[s.n%len(p.pools)]
		for _, other := range p.wants {
			if other.pool == w.pool {
				return
			}
		}
		for range 1 + s.n%4 {
			w.ids = append(w.ids, p.id(w.pool))
		}
	}
	p.wants = append(p.wants, w)
	t.fly(p, s.fate)
}

// pay gives back what pools owe.
func (t *trial) pay(p *peer, f fate) {
	for _, pool := range p.pools {
		ids := p.heldOf(pool)
		for _, id := range ids[:min(p.owed[pool], len(ids))] {
			t.gone(p, id)
		}
		p.owed[pool] = 0
	}
	t.fly(p, f)
}

// gone gives a permit back whose connection has ended.
func (t *trial) gone(p *peer, id string) {
	delete(t.postgres, id)
	delete(p.dialled, id)
	p.release(id)
}

// endsAll ends the connections of a session.
func (t *trial) endsAll(p *peer) {
	for id := range t.postgres {
		if sessionOf(id) == p.session {
			delete(t.postgres, id)
		}
	}
}

func (t *trial) strayArrives(s stray) {
	switch {
	case s.x != nil:
		_, _ = t.exchange(*s.x)
	case s.n != nil:
		_, _ = t.renew(*s.n)
	default:
		s.call()
	}
}

// heal connects a session again. Its next heartbeat is due, but a caller can come first.
func (t *trial) heal(p *peer, beats bool) {
	if p.cut {
		t.say("%s is connected again", p.session)
		p.cut, p.deaf = false, false
		for _, id := range p.lost { // it wakes
			delete(t.postgres, id)
		}
		t.place.listen(p.session)
		p.repeat()
		if beats {
			t.beat(p, arrives)
		}
		t.fly(p, arrives)
	}
}

// listenAgain replaces a subscription that was lost.
func (t *trial) listenAgain(p *peer) {
	if p.deaf && !p.cut {
		t.say("%s is subscribed again", p.session)
		p.deaf = false
		t.place.listen(p.session)
		p.repeat()
		t.beat(p, arrives)
		t.fly(p, arrives)
	}
}

// crash ends a session as SIGKILL does: its connections end with it, at once or a moment later, and
// Redis hears nothing.
func (t *trial) crash(slot int, atOnce bool) {
	p := t.peers[slot]
	t.say("%s crashes", p.session)
	p.alive = false
	for id := range p.dialled {
		delete(t.postgres, id)
	}
	if atOnce {
		t.endsAll(p)
	}
	for id := range t.postgres {
		if sessionOf(id) == p.session {
			t.dying = append(t.dying, id)
		}
	}
	if p.flight != nil && t.plan.late {
		t.strays = append(t.strays, stray{x: &p.flight.x})
	}
	t.place.deafen(p.session)
	t.peers[slot] = nil
}

// leaves closes a session.
func (t *trial) leaves(slot int, f fate) {
	p := t.peers[slot]
	t.landPulse(p)
	for len(p.wants) > 0 {
		p.withdraw(p.wants[0])
	}
	t.fly(p, arrives)
	t.land(p)
	var drop []string
	for _, d := range p.drops {
		drop = append(drop, Request(p.ttl, d.ids...))
	}
	for _, id := range slices.Sorted(maps.Keys(p.held)) {
		drop = append(drop, Request(p.ttl, id))
	}
	t.endsAll(p)
	p.alive, p.held = false, nil
	if p.cut || f == requestLost {
		t.say("Leave(%s), request lost", p.session)
	} else {
		t.leave(p.expected(t.now), p.session, p.epoch, drop)
		if f == doubled {
			t.twice(func() { t.leave(p.expected(t.now), p.session, p.epoch, drop) })
		}
	}
	t.place.deafen(p.session)
	t.peers[slot] = nil
}

// advance lets time pass, and with it what sessions do by themselves: they beat, and hear what is pushed to them.
func (t *trial) advance(by int64) {
	t.say("%d ms pass", by)
	if by >= 60 {
		for _, id := range t.dying {
			delete(t.postgres, id)
		}
		t.dying = nil
	}
	until := t.now + by
	for {
		t.chores(by >= 100)
		next := until
		var due *peer
		for _, p := range t.peers {
			if p != nil && !p.cut && p.nextBeat <= next {
				next, due = max(p.nextBeat, t.now), p
			}
		}
		t.now = next
		for _, p := range t.peers {
			if p == nil {
				continue
			}
			for _, id := range slices.Sorted(maps.Keys(p.held)) {
				if p.held[id] <= t.now {
					t.lose(p, id)
				}
			}
		}
		if due == nil {
			return
		}
		t.beat(due, arrives)
	}
}

// chores are done at once: to hear what is pushed, and when there is more time what is slow arrives.
func (t *trial) chores(all bool) {
	for _, p := range t.peers {
		if p == nil || p.cut {
			continue
		}
		if all {
			t.landPulse(p)
			t.land(p)
		}
		t.hear(p)
	}
}

// outside is what others do.
func (t *trial) outside(s step) {
	switch s.do {
	case "flush":
		t.say("FLUSHALL")
		t.must(t.place.do("FLUSHALL"))
	case "delete":
		key := t.keys.all[s.n%len(t.keys.all)]
		if t.damaged || len(t.before.Permits) <= 1 && key == t.keys.all[0] {
			// Two keys gone can leave no trace of what they held; and one permit that is missing was revoked.
			return
		}
		t.say("DEL %s", key)
		t.must(t.place.do("DEL", key))
		t.damaged = true
	case "revoke":
		if len(t.before.Permits) < 2 {
			return
		}
		id := byScore(t.before.Permits)[s.n%len(t.before.Permits)]
		t.say("ZREM %s by hand", id)
		t.must(t.place.do("ZREM", t.keys.all[0], id))
		t.damaged, t.revoked = true, true
	case "set clock":
		by := []int64{3600_000, -3600_000, 5000, -5000, 1500, -1500, 86400_000}[s.n%7]
		t.say("Redis's clock is set by %d ms", by)
		t.set += by
		return
	case "capacity":
		if p := t.peers[s.who]; p != nil && !p.cut {
			n := s.n % (t.plan.capacity + 3)
			t.setCapacity(p.expected(t.now), n)
			p.limit = int64(n)
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
	t.reload()
}

// otherTakes is what a client of the original does: it removes what expired long ago, and takes a permit if there are fewer than the capacity.
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
		t.counted++
		id := fmt.Sprintf("%08x-0000-4000-%s-%012x", t.counted, []string{"8000", "8a69"}[n%2], t.counted)
		t.say("another client takes %s", id)
		t.must(t.place.do("ZADD", t.keys.all[0], t.clock()+int64(500+n), id))
	}
}
