package redisscript

import (
	"fmt"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// The part of the model that is connection pools, as package allotment has them.

// A pool holds permits, and gives back what is recalled: at once, after a while, or when a step
// says so.
type pool struct {
	core   core.Pool
	want   int
	owed   int
	owedIn string        // the epoch of the state in which the last of these were recalled
	gone   bool          // its owner has closed it
	gave   time.Duration // when it last gave a permit back
}

func (t *trial) newPool(s *session) {
	p := &pool{}
	p.core.Owner = p
	joined := false
	t.step(s, func(c *core.Core, _ time.Duration) { joined = c.Join(&p.core) })
	if joined {
		s.pools = append(s.pools, p)
	}
}

// ask says how many more permits a pool wants.
func (t *trial) ask(s *session, p *pool, n int) {
	p.want = n
	t.say("%s asks for %d more", shownPool(s, p), n)
	t.step(s, func(c *core.Core, now time.Duration) { c.Ask(now, &p.core, n) })
}

func shownPool(s *session, p *pool) string {
	return fmt.Sprintf("pool %d of %s", 1+slices.Index(s.pools, p), s.name)
}

// tellAll tells the pools what the core wants them to be told, in that order.
func (t *trial) tellAll(s *session) {
	events := s.events
	s.events, s.delivering = nil, false
	for _, e := range events {
		t.tell(s, e)
	}
	t.checkOwed(s)
}

// untilTold is how long it takes until pools are told: another goroutine tells them. A scenario can
// decide it.
func (t *trial) untilTold(s *session) time.Duration {
	if next := s.forced["told"]; len(next) > 0 && !t.faultless {
		s.forced["told"] = next[1:]
		return next[0].there
	}
	if t.plan.lateTimers && !t.faultless {
		return lateness(t.now)
	}
	return 0
}

func (t *trial) tell(s *session, e core.Event) {
	p := e.Pool.Owner.(*pool)
	switch e.Kind {
	case core.Granted:
		for _, granted := range e.Permits {
			granted.Owner.(*permit).told = true
		}
		p.want = max(0, p.want-len(e.Permits))
		if p.gone || s.leaves || t.returning {
			t.giveAll(s, p)
			return
		}
		t.ask(s, p, p.want)
		if t.plan.moves {
			t.step(s, func(c *core.Core, now time.Duration) { c.Moved(now, &p.core, 7*time.Millisecond) })
		}
		if t.plan.fence {
			for _, granted := range e.Permits {
				if s.random.IntN(10) < 7 || t.plan.looks {
					t.connect(s, granted.Owner.(*permit))
				}
			}
		}
	case core.LeaseLost:
		lost := e.Permits[0].Owner.(*permit)
		delete(t.postgres, lost.ID)
		if s.random.IntN(5) > 0 || s.leaves || p.gone {
			t.give(s, p, lost)
		}
	case core.Told:
		n := 0
		t.step(s, func(c *core.Core, _ time.Duration) { n = c.Hear(e) })
		t.checkHeard(s, p, e, n)
		t.recall(s, p, n, e.After)
	case core.Forget:
		anew := false
		t.step(s, func(c *core.Core, _ time.Duration) { anew = c.HearAnew(e) })
		if anew {
			t.say("%s counts recalls anew, from %v", shownPool(s, p), e.Tally)
			p.owed = 0
		}
	case core.MakeRoom:
		t.recall(s, p, e.N, e.After)
	case core.Closing:
		t.giveAll(s, p)
	}
}

// recall takes n recalls; below zero, so many are withdrawn.
func (t *trial) recall(s *session, p *pool, n int, after time.Duration) {
	p.owed = max(0, min(p.owed+n, p.core.Held()))
	if n <= 0 {
		return
	}
	p.owedIn = s.core.Epoch()
	t.say("%s is to give %d, after %v; owes %d", shownPool(s, p), n, after, p.owed)
	switch s.random.IntN(4) {
	case 0: // it gives when a step says so, or at the end
	case 1:
		t.at(t.now+after+80*time.Millisecond, s, func() { t.pay(s, p) })
	default:
		t.at(t.now+after, s, func() { t.pay(s, p) })
	}
}

// pay gives back what a pool owes.
func (t *trial) pay(s *session, p *pool) {
	all := s.ofPool(p, core.Held)
	for _, held := range all[:min(p.owed, len(all))] {
		t.give(s, p, held)
	}
	p.owed = 0
}

// ofPool lists the permits in one of those states of which a pool was told.
func (s *session) ofPool(p *pool, states ...core.State) []*permit {
	return slices.DeleteFunc(s.owned(&p.core, states...), func(held *permit) bool {
		return !held.told
	})
}

// give gives a permit back whose connection has ended.
func (t *trial) give(s *session, p *pool, held *permit) {
	if held.State() == core.Released {
		return
	}
	delete(t.postgres, held.ID)
	p.owed = max(0, p.owed-1)
	t.say("%s gives %s", shownPool(s, p), held.ID)
	p.gave = t.now
	t.step(s, func(c *core.Core, now time.Duration) { c.Give(now, &held.Permit) })
	t.dropped(s, held.ID)
}

// giveAll gives back what a pool holds or has lost. The pool wants nothing more.
func (t *trial) giveAll(s *session, p *pool) {
	if p.want > 0 {
		t.ask(s, p, 0)
	}
	for _, held := range s.ofPool(p, core.Held, core.Lost) {
		t.give(s, p, held)
	}
}

// closePool ends a pool, which gives everything back.
func (t *trial) closePool(s *session, p *pool) {
	t.say("%s is closed", shownPool(s, p))
	p.gone = true
	t.giveAll(s, p)
	t.step(s, func(c *core.Core, now time.Duration) { c.ClosePool(now, &p.core) })
}
