package redisscript

import (
	"math/rand/v2"
	"time"
)

// A plan is a history as it is drawn from its seed.
type plan struct {
	seed       uint64
	steps      []step
	capacity   int
	ttl, retry time.Duration
	roundTrip  time.Duration   // what a message and its reply take, if nothing happens to them
	faults     int             // % of the messages that do not go as usual
	unharmed   map[string]bool // messages that go as usual all the same
	// A history in which few of these happen is easier to read, and reaches further.
	pools, minima, maxima, replicas, moves bool
	losses, clocks, operator               bool // of the state, of the clock; there is an operator
	others                                 bool // clients of the original take permits, too
	cuts, pauses, strays, lateTimers       bool
	drifts                                 bool // of the sessions' clocks
	fence                                  bool // pools record backends,
	looks                                  bool // ... and sessions look for those of others
	// windows: in this history more than the capacity can be held for a while. See newPlan.
	windows bool
}

// A step of a history. The meaning of its numbers depends on what is there when it is taken, so
// steps can be left out. A step that means nothing does nothing.
type step struct {
	do   string
	who  int
	n, m int
}

// A choice is a kind of step, and how often it is drawn.
type choice struct {
	do     string
	weight int
}

// newPlan draws the history of a seed.
func newPlan(seed uint64, length int) *plan {
	r := rand.New(rand.NewPCG(seed, 1))
	some := func(percent int) bool { return r.IntN(100) < percent }
	p := &plan{seed: seed, capacity: 1 + r.IntN(6), unharmed: make(map[string]bool)}
	p.ttl = []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}[r.IntN(3)]
	p.retry = []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, p.ttl}[r.IntN(3)]
	p.roundTrip = []time.Duration{
		0, 0, 0, 600 * time.Microsecond, 5 * time.Millisecond, 40 * time.Millisecond, p.ttl * 2 / 5,
	}[r.IntN(7)]
	p.faults = []int{0, 3, 10, 25}[r.IntN(4)]
	p.pools, p.minima, p.strays, p.cuts = some(60), some(35), some(50), some(35)
	p.losses, p.clocks, p.operator, p.others = some(40), some(20), some(40), some(15)
	p.maxima, p.replicas, p.moves = some(20), some(15), some(50)
	p.lateTimers, p.drifts, p.pauses = some(40), some(30), some(35)
	// Other clients do not notice that a clock was set. A call that is late, a Redis that was
	// stopped, and a fleet that was away look like a clock that was set. And no session re-asserts
	// what other clients hold.
	if p.others = p.others && !p.clocks && !p.losses; p.others {
		p.faults, p.roundTrip = 0, min(p.roundTrip, 5*time.Millisecond)
		p.pauses, p.cuts = false, false
	}
	p.fence = p.pools && some(60)
	if p.looks = p.fence && some(80); p.looks {
		p.capacity = max(p.capacity, 3)
	}
	// After a loss of state, a session that is cut off cannot say what it holds. A newcomer cannot
	// know of one that is not subscribed. A process that is stopped cannot say what it has open.
	p.windows = p.losses && (p.cuts || p.looks || p.fence && p.pauses)

	choices, sum := p.choices(), 0
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

// choices lists the steps that can be drawn.
func (p *plan) choices() []choice {
	list := []choice{
		{"want", 30}, {"release", 22}, {"beat", 3}, {"advance", 24}, {"lose pushes", 2},
		{"cancel", 5}, {"tick", 2}, {"join", 6}, {"leave", 3}, {"crash", 1}, {"resubscribe", 1},
		{"snapshot", 1},
	}
	add := func(when bool, more ...choice) {
		if when {
			list = append(list, more...)
		}
	}
	add(!p.others, choice{"stall", 1}, choice{"lose calls", 1}, choice{"lose batch", 1},
		choice{"orphan", 1}, choice{"copies", 1}, choice{"late push", 2})
	add(p.pools, choice{"pay", 6}, choice{"offer", 6}, choice{"new pool", 2},
		choice{"close pool", 1})
	add(p.fence, choice{"connect", 20}, choice{"crash", 1})
	if p.looks {
		// A session looks for backends only if two sessions have some, one of them is not
		// subscribed, and a request waits.
		list = []choice{
			{"want", 40}, {"release", 7}, {"beat", 4}, {"advance", 24}, {"cancel", 2}, {"join", 8},
			{"leave", 1}, {"crash", 2}, {"pay", 5}, {"offer", 2}, {"connect", 20},
			{"unsubscribe", 10}, {"subscribe", 3}, {"reopen", 4},
		}
	}
	add(p.pools && !p.others, choice{"withdraw", 1}, choice{"give all", 1}, choice{"seat", 1})
	add(p.cuts, choice{"cut", 2}, choice{"heal", 2})
	add(p.pauses, choice{"pause", 4}, choice{"resume", 4})
	add(p.pauses && p.fence, choice{"pause", 4})
	add(p.losses, choice{"flush", 2}, choice{"delete", 2}, choice{"revoke", 2}, choice{"cross", 16},
		choice{"refuse", 2})
	add(p.clocks, choice{"set clock", 1})
	add(p.operator, choice{"capacity", 3}, choice{"operator pauses", 2}, choice{"drains", 2},
		choice{"resumes", 5}, choice{"evicts", 2}, choice{"revokes", 2})
	add(p.others, choice{"other takes", 6}, choice{"other gives", 3})
	return list
}

// joiningOf draws what a session declares.
func (p *plan) joiningOf(s step) joining {
	j := joining{capacity: p.capacity, weight: 1}
	if s.m%5 == 0 {
		j.capacity += s.n % 3
	}
	if p.minima && s.n%2 == 0 {
		j.min = s.n / 2 % (p.capacity + 1)
	}
	if p.maxima && s.m%3 > 0 {
		j.max = max(1+s.n%3, j.min)
	}
	if p.pools {
		j.weight = []int{1, 1, 1, 2, 3, 10}[s.n%6]
	}
	if s.m%7 == 0 {
		j.maxWaiters = 1 + s.m%3
	}
	j.replicated = p.replicas && s.n%3 > 0
	return j
}
