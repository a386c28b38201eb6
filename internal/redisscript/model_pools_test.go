package redisscript

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is connection pools, as package allotment makes them, and the Postgres backends
// under their permits.

// A pool holds permits, and gives back what it is asked for: at once, after a while, or when a step says so.
type pool struct {
	core core.Pool
	want int
	owed int
	gone bool // its owner has closed it
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

// ask says what a pool wants.
func (t *trial) ask(s *session, p *pool, n int) {
	p.want = n
	t.say("%s asks for %d more", shownPool(s, p), n)
	t.step(s, func(c *core.Core, now time.Duration) { c.Ask(now, &p.core, n) })
}

func shownPool(s *session, p *pool) string {
	return fmt.Sprintf("pool %d of %s", 1+slices.Index(s.pools, p), s.name)
}

// tellAll tells pools what the core wants them to be told, in that order.
func (t *trial) tellAll(s *session) {
	events := s.events
	s.events, s.delivering = nil, false
	for _, e := range events {
		t.tell(s, e)
	}
}

// untilTold is how long that takes: another goroutine does it.
func (t *trial) untilTold(s *session) time.Duration {
	if t.plan.lazy && !t.calm {
		return lateness(s, t.now)
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
				if s.random.IntN(10) < 7 || t.plan.deaf {
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
		if n != 0 && e.Epoch != s.core.Epoch() {
			t.failf("heard: %s hears of recalls of a state that is lost", shownPool(s, p))
		}
		t.checkHeard(s, p, n)
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

// recall takes what is recalled from a pool; below zero, recalls are withdrawn.
func (t *trial) recall(s *session, p *pool, n int, after time.Duration) {
	p.owed = max(0, min(p.owed+n, p.core.Held()))
	if n <= 0 {
		return
	}
	t.say("%s is to give %d, after %v; owes %d", shownPool(s, p), n, after, p.owed)
	switch s.random.IntN(4) {
	case 0: // when a step says so, or at the end
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

// ofPool are the permits in one of those states that a pool was told of.
func (s *session) ofPool(p *pool, states ...core.State) []*permit {
	return slices.DeleteFunc(s.mine(&p.core, states...), func(held *permit) bool { return !held.told })
}

// give gives a permit back whose connection has ended.
func (t *trial) give(s *session, p *pool, held *permit) {
	if held.State() == core.Released {
		return
	}
	delete(t.postgres, held.ID)
	p.owed = max(0, p.owed-1)
	t.say("%s gives %s", shownPool(s, p), held.ID)
	t.step(s, func(c *core.Core, now time.Duration) { c.Give(now, &held.Permit) })
	t.dropped(s, held.ID)
}

// giveAll gives back what a pool holds and has lost, and what it waits for.
func (t *trial) giveAll(s *session, p *pool) {
	if p.want > 0 {
		t.ask(s, p, 0)
	}
	for _, held := range s.ofPool(p, core.Held, core.Lost) {
		t.give(s, p, held)
	}
}

// closePool is the end of a pool, whose owner gives everything back and may be away when the heartbeat comes.
func (t *trial) closePool(s *session, p *pool) {
	t.say("%s is closed", shownPool(s, p))
	p.gone = true
	t.giveAll(s, p)
	t.step(s, func(c *core.Core, now time.Duration) { c.ClosePool(now, &p.core) })
}

// A backend is a connection of Postgres.
type backend struct {
	tag      string // "<pid> <start> <server>"
	recorded bool   // its pool was told that Redis knows of it
}

// connect opens a connection under a permit whose former one has ended. If that one was recorded, it is
// recorded first that there is none any more.
func (t *trial) connect(s *session, p *permit) {
	if p.connecting {
		return
	}
	delete(t.postgres, p.ID)
	text, held := "", false
	t.step(s, func(c *core.Core, _ time.Duration) { text, held = c.ClearBackend(&p.Permit) })
	switch {
	case !held:
	case text == "":
		t.dial(s, p)
	default:
		p.connecting = true
		t.record(s, p, text, func(err error) {
			p.connecting = false
			if err == nil {
				t.step(s, func(c *core.Core, _ time.Duration) { c.BackendCleared(&p.Permit, text) })
				p.vacated = true
				t.dial(s, p)
			}
		})
	}
}

// dial opens a connection, and records it. Without that it is closed.
func (t *trial) dial(s *session, p *permit) {
	if s.local(t.now) >= p.TrustedUntil() {
		return
	}
	t.pids++
	b := &backend{tag: fmt.Sprintf("%d %d %d", 100+t.pids, t.clock(), modelStart)}
	t.postgres[p.ID] = b
	t.say("%s opens %s under %s", s.name, b.tag, p.ID)
	text, held := "", false
	t.step(s, func(c *core.Core, _ time.Duration) { text, held = c.RecordBackend(&p.Permit, b.tag) })
	if !held {
		t.failf("%s trusts %s, and may not cover a backend by it", s.name, p.ID)
	}
	p.covered, p.vacated, p.connecting = true, false, true
	t.record(s, p, text, func(err error) {
		p.connecting = false
		switch {
		case t.postgres[p.ID] != b:
		case err != nil:
			delete(t.postgres, p.ID)
		default:
			b.recorded = true
		}
	})
}

// record has Redis told what is known of the backend under a permit.
func (t *trial) record(s *session, p *permit, text string, then func(error)) {
	l := t.luckOf(s, "record")
	t.sayLuck(s, "a record", l)
	epoch, expected := s.core.Epoch(), t.expected(s)
	var err error
	run := func() {
		err = t.mark(s, epoch, expected, p.ID, text)
		if l.fate == doubled && err == nil {
			t.twice(func() { err = t.mark(s, epoch, expected, p.ID, text) })
		}
	}
	answered := func() {
		switch {
		case errors.Is(err, message.ErrNotHeld):
			t.step(s, func(c *core.Core, now time.Duration) { c.NotHeld(now, &p.Permit) })
		case errors.Is(err, message.ErrGone):
			t.step(s, func(c *core.Core, _ time.Duration) { c.BeatSoon() })
		}
		then(err)
	}
	t.send(s, l, t.plan.ttl/4, run, answered, then)
}

// reap ends backends for others, or looks for them. Of some it does not get through to the server.
func (t *trial) reap(s *session, fx core.Effects) {
	if len(fx.End) > 0 {
		t.at(t.now+t.plan.roundTrip, s, func() {
			gone := make([]bool, len(fx.End))
			for i, r := range fx.End {
				if stuck := strings.HasSuffix(strings.Fields(r.Tag)[0], "3"); stuck && !t.calm {
					continue
				}
				gone[i] = true
				if b := t.postgres[r.ID]; b != nil && strings.HasPrefix(b.tag, r.Tag+" ") {
					t.say("%s ends backend %s under %s", s.name, r.Tag, r.ID)
					delete(t.postgres, r.ID)
				}
			}
			t.step(s, func(c *core.Core, now time.Duration) { c.Ended(now, fx.End, gone) })
		})
	}
	if len(fx.Look) > 0 {
		var ids, records []string
		for _, r := range fx.Look {
			if b := t.postgres[r.ID]; b == nil || b.tag != r.Tag {
				ids, records = append(ids, r.ID), append(records, r.Text)
			}
		}
		looked := func() { t.step(s, func(c *core.Core, _ time.Duration) { c.Looked() }) }
		if len(ids) == 0 {
			t.soon(s, looked)
			return
		}
		l := t.luckOf(s, "look")
		t.sayLuck(s, "what it saw", l)
		expected := t.expected(s)
		run := func() {
			t.freeGone(s, fx.LookEpoch, expected, ids, records)
			if l.fate == doubled {
				t.twice(func() { t.freeGone(s, fx.LookEpoch, expected, ids, records) })
			}
		}
		t.send(s, l, t.plan.ttl, run, looked, func(error) { looked() })
	}
}

// endsAll ends the connections of a session.
func (t *trial) endsAll(s *session) {
	for _, id := range keysInOrder(t.postgres) {
		if sessionOf(id) == s.name {
			delete(t.postgres, id)
		}
	}
}
