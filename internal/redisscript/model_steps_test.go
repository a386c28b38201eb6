package redisscript

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// A step of a history. What its numbers mean depends on what is there when it is taken, so that steps can be
// left out: one that means nothing any more does nothing.
type step struct {
	do   string
	who  int
	n, m int
}

// newPlan makes the history of a seed.
func newPlan(seed uint64, length int) *plan {
	r := rand.New(rand.NewPCG(seed, 1))
	some := func(percent int) bool { return r.IntN(100) < percent }
	p := &plan{seed: seed, capacity: 1 + r.IntN(6), calmed: make(map[string]bool)}
	p.ttl = []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}[r.IntN(3)]
	p.retry = []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, p.ttl}[r.IntN(3)]
	p.roundTrip = []time.Duration{0, 0, 0, 600 * time.Microsecond, 5 * time.Millisecond, 40 * time.Millisecond, p.ttl * 2 / 5}[r.IntN(7)]
	p.faults = []int{0, 3, 10, 25}[r.IntN(4)]
	p.pools, p.minima, p.late, p.cuts = some(60), some(35), some(50), some(35)
	p.losses, p.clocks, p.operator, p.others = some(25), some(20), some(40), some(15)
	p.maxima, p.replicas, p.moves, p.lazy, p.drifts, p.pauses = some(20), some(15), some(50), some(40), some(30), some(35)
	// Other clients know nothing of a clock that was set. A call that comes late, a Redis that was stopped and a
	// fleet that was away are taken for that. And nobody else re-asserts what other clients hold.
	if p.others = p.others && !p.clocks && !p.losses; p.others {
		p.faults, p.roundTrip, p.pauses, p.cuts = 0, min(p.roundTrip, 5*time.Millisecond), false, false
	}
	p.fence = p.pools && some(60)
	if p.deaf = p.fence && some(80); p.deaf {
		p.capacity = max(p.capacity, 3)
	}
	// A session that is cut off cannot say again what it holds, and a newcomer cannot know that. Nor can it of
	// one that does not listen. And what a process that is stopped has open, it cannot say again.
	p.windows = p.losses && (p.cuts || p.deaf || p.fence && p.pauses)

	type choice struct {
		do     string
		weight int
	}
	choices := []choice{{"want", 30}, {"release", 22}, {"beat", 3}, {"advance", 24}, {"lose pushes", 2}, {"cancel", 5}, {"tick", 2},
		{"join", 6}, {"leave", 3}, {"crash", 1}, {"resubscribe", 1}, {"snapshot", 1}}
	if !p.others {
		choices = append(choices, choice{"stall", 1})
	}
	if p.pools {
		choices = append(choices, choice{"pay", 6}, choice{"offer", 6}, choice{"new pool", 2}, choice{"close pool", 1})
	}
	if p.fence {
		choices = append(choices, choice{"connect", 20}, choice{"crash", 1})
	}
	if p.deaf { // somebody looks for backends only where two hold some, one of them does not listen, and somebody waits
		choices = []choice{{"want", 40}, {"release", 7}, {"beat", 4}, {"advance", 24}, {"cancel", 2}, {"join", 8}, {"leave", 1},
			{"crash", 2}, {"pay", 5}, {"offer", 2}, {"connect", 20}, {"deafen", 10}, {"listen", 3}}
	}
	if p.cuts {
		choices = append(choices, choice{"cut", 2}, choice{"heal", 2})
	}
	if p.pauses {
		choices = append(choices, choice{"pause", 2}, choice{"resume", 2})
	}
	if p.losses {
		choices = append(choices, choice{"flush", 2}, choice{"cross", 3}, choice{"refuse", 1}, choice{"delete", 2}, choice{"revoke", 1})
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
		p.steps = append(p.steps, s)
	}
	return p
}

func (t *trial) take(s step) {
	p := t.sessions[s.who]
	switch s.do {
	case "join":
		if p == nil {
			t.join(s.who, t.joiningOf(s))
			if p = t.sessions[s.who]; p != nil && t.plan.pools {
				for range map[bool]int{true: 1 + s.m%2, false: s.m % 3}[t.plan.fence] {
					t.newPool(p)
				}
			}
		}
	case "advance":
		by := []time.Duration{1, 7, 30, 60, 60, 110, 110, 250, 250, 500, time.Duration(t.ttlMillis()), time.Duration(2*t.ttlMillis() + 10)}[s.n%12]
		t.say("%d ms pass", by)
		t.until(t.now + by*time.Millisecond)
	case "stall":
		t.stalledUntil = t.now + []time.Duration{3 * time.Millisecond, 50 * time.Millisecond, t.plan.ttl / 4, t.plan.ttl, t.plan.ttl * 3 / 2}[s.n%5]
		t.say("Redis stalls until %v", t.stalledUntil)
		for _, p := range t.all() {
			p.troubled(t)
			t.at(t.stalledUntil+time.Microsecond, nil, func() { p.troubled(t) })
		}
	case "snapshot":
		t.snapshot()
	case "flush", "delete", "revoke", "set clock", "capacity", "other takes", "other gives":
		t.outside(s)
	default:
		if p != nil {
			t.takeOf(p, s)
		}
	}
}

func (t *trial) joiningOf(s step) joining {
	j := joining{capacity: t.plan.capacity, weight: 1}
	if s.m%5 == 0 {
		j.capacity += s.n % 3
	}
	if t.plan.minima && s.n%2 == 0 {
		j.min = s.n / 2 % (t.plan.capacity + 1)
	}
	if t.plan.maxima && s.m%3 > 0 {
		j.max = max(1+s.n%3, j.min)
	}
	if t.plan.pools {
		j.weight = []int{1, 1, 1, 2, 3, 10}[s.n%6]
	}
	if s.m%7 == 0 {
		j.maxWaiters = 1 + s.m%3
	}
	j.replicated = t.plan.replicas && s.n%3 > 0
	return j
}

// takeOf takes a step of one session.
func (t *trial) takeOf(p *session, s step) {
	switch s.do { // what happens to a process that is stopped, too
	case "resume":
		t.resume(p)
		return
	case "heal":
		t.heal(p)
		return
	case "cut":
		if !p.cut {
			t.cutOff(p, s.n%2 == 0)
		}
		return
	case "cross":
		t.cross(p, s)
		return
	case "refuse":
		t.refuse(p, s)
		return
	case "deafen":
		t.say("%s loses its subscription", p.name)
		p.refused = true
		t.loseSubscription(p)
		return
	case "lose pushes":
		t.losePushes(p)
		return
	case "crash":
		t.crash(s.who, s.n%2 == 0)
		return
	}
	if p.paused {
		return
	}
	switch s.do {
	case "want":
		t.takeWant(p, s)
	case "release":
		all := p.mine(nil, core.Held, core.Lost)
		for _, pool := range p.pools {
			all = append(all, p.ofPool(pool, core.Held, core.Lost)...)
		}
		if len(all) > 0 {
			held := all[s.n%len(all)]
			if held.Pool != nil {
				t.give(p, held.Pool.Owner.(*pool), held)
			} else {
				t.release(p, held)
			}
		}
	case "cancel":
		if len(p.requests) > 0 && s.m%3 > 0 {
			t.giveUp(p, p.requests[s.n%len(p.requests)])
		} else if len(p.pools) > 0 && !p.pools[s.n%len(p.pools)].gone {
			t.ask(p, p.pools[s.n%len(p.pools)], 0)
		}
	case "tick":
		t.tick(p)
	case "beat":
		t.step(p, func(c *core.Core, _ time.Duration) { c.BeatSoon() })
	case "resubscribe":
		t.loseSubscription(p)
		t.subscribe(p)
	case "listen":
		p.refused = false
		if !p.subscribed {
			t.say("%s is subscribed again", p.name)
			t.subscribe(p)
		}
	case "pause":
		t.pause(p)
	case "leave":
		t.close(s.who, s.n%3 == 0)
	case "new pool":
		if len(p.pools) < 4 {
			t.newPool(p)
		}
	default:
		if len(p.pools) > 0 {
			t.takeOfPool(p, p.pools[s.n%len(p.pools)], s)
		}
	}
}

// takeOfPool takes a step of one pool.
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
	default:
		panic("bug: no such step: " + st.do)
	}
}

// takeWant asks for something. Most callers are patient.
func (t *trial) takeWant(s *session, st step) {
	kind := st.m % 10
	if t.plan.fence && kind < 6 || t.plan.deaf && kind == 6 {
		kind = 9 // for pools cover backends
	}
	patience := []time.Duration{0, 0, 0, t.plan.ttl, t.plan.ttl / 3, time.Millisecond}[st.n%6]
	plain := func(n int) (list []*core.Permit) {
		for range n {
			list = append(list, s.core.NewPermit())
		}
		return list
	}
	switch kind {
	default:
		t.want(s, message.Wait, patience, plain(1)...)
	case 4, 5:
		t.want(s, message.Try, patience, plain(1)...)
	case 6:
		if n := 2 + st.n%2; s.joining.max == 0 || n <= s.joining.max {
			t.want(s, message.Wait, patience, plain(n)...)
		}
	case 7:
		held := s.mine(nil, core.Held)
		if len(held) > 0 {
			if p := held[st.n%len(held)]; s.requestOf(p.ID) == nil {
				t.want(s, message.Hold, patience, &p.Permit)
			}
		}
	case 0, 8, 9:
		if len(s.pools) == 0 {
			return
		}
		p := s.pools[st.n%len(s.pools)]
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
			if st.n%7 == 0 { // and wants it no longer, when the answer may be on its way
				t.at(t.now+time.Millisecond, s, func() {
					if !p.gone && p.want > 0 {
						t.ask(s, p, 0)
					}
				})
			}
		}
	}
}

// cross has what a session is told by one state arrive when it knows the next one already: the answers to a batch
// and to a call, and a push.
func (t *trial) cross(s *session, st step) {
	if s.paused || s.cut {
		return
	}
	late := []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, t.plan.ttl / 3}[st.n%3]
	for _, what := range []string{"batch", "call", "push"} {
		if st.m%4 > 0 {
			s.crosses[what] = t.plan.roundTrip + late
		}
		st.m /= 4
	}
	beat := func() { t.step(s, func(c *core.Core, _ time.Duration) { c.BeatSoon() }) }
	beat()
	t.takeWant(s, st)
	t.until(t.now + t.plan.roundTrip)
	for _, other := range t.all() { // so that it is pushed what it waits for
		if held := other.mine(nil, core.Held); other != s && !other.paused && len(held) > 0 {
			t.release(other, held[0])
			t.until(t.now + t.plan.roundTrip)
			break
		}
	}
	t.outside(step{do: "flush"})
	beat()
}

// refuse has Redis not know a session any more that releases and wants something at the same time.
func (t *trial) refuse(s *session, st step) {
	if s.paused || s.cut {
		return
	}
	t.say("DEL %s", t.keys.all[3])
	t.must(t.place.do("DEL", t.keys.all[3]))
	t.damaged = true
	t.reload()
	if held := s.mine(nil, core.Held); len(held) > 0 {
		t.release(s, held[0])
	}
	t.takeWant(s, st)
}

// outside is what others do.
func (t *trial) outside(s step) {
	switch s.do {
	case "flush":
		t.say("FLUSHALL")
		t.must(t.place.do("FLUSHALL"))
	case "delete":
		key := t.keys.all[s.n%len(t.keys.all)]
		if s.m%3 == 0 {
			key = t.keys.all[3] // the sessions: a batch is refused then, and nothing else is lost
		}
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
		t.damaged, t.tampered, t.revoked[id] = true, true, true
	case "set clock":
		by := []int64{3600_000, -3600_000, 5000, -5000, 1500, -1500, 86400_000}[s.n%7]
		t.say("Redis's clock is set by %d ms", by)
		t.set += by
		// A Redis that was stopped counts on from where it was. A session that does not know that yet expects a
		// later time; and scripts believe that if the clock is set just then.
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
	t.reload()
	t.lossesUntil = t.now + t.plan.ttl
	for _, p := range t.all() {
		p.troubled(t)
	}
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
