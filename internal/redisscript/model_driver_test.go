package redisscript

import (
	"errors"
	"slices"
	"sort"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that sends what a core wants sent, and receives what comes: batches one at a time, calls of
// the heartbeat as they are made, and pushes. As package engine does in sender.go, heartbeat.go and subscription.go.

// sendNext begins to send batches.
func (t *trial) sendNext(s *session) {
	var b *core.Batch
	t.step(s, func(c *core.Core, now time.Duration) {
		s.starting = false
		b = c.NextBatch(now)
	})
	t.sendBatch(s, b, false, true)
}

// sendBatch sends a batch, has the core take what becomes of it, and sends the next. A batch whose connection
// was broken is sent again at once.
func (t *trial) sendBatch(s *session, b *core.Batch, again, mayBreak bool) {
	if b == nil {
		return
	}
	if !again {
		t.checkKnown(s)
	}
	s.latest = b
	x := b.X
	if again {
		t.step(s, func(c *core.Core, now time.Duration) { x = c.Again(now, b) })
	}
	l := t.luckOf(s, "batch")
	var got message.Exchanged
	var err error
	failed := func(err error) {
		if errors.Is(err, errBroken) && mayBreak {
			t.sendBatch(s, b, true, false)
			return
		}
		t.say("%s: a batch fails: %v", s.name, err)
		s.troubled(t)
		t.batchEnds(s, func(c *core.Core, now time.Duration) { c.BatchFailed(now, b, core.Failed, err) })
	}
	run := func() {
		got, err = t.exchangeOf(s, b, x)
		if l.fate == doubled && err == nil && x.Offered == 0 {
			t.twice(func() { got, err = t.exchangeOf(s, b, x) })
		}
	}
	answered := func() {
		t.batchEnds(s, func(c *core.Core, now time.Duration) {
			first := !s.done[b]
			s.done[b] = true
			if err != nil {
				c.BatchFailed(now, b, core.Gone, err)
				return
			}
			if first && x.Epoch == c.Epoch() {
				t.heardOf(s, got)
			}
			for _, r := range s.requests {
				if names(x, r.Permits[0].ID) {
					r.asked = t.now
				}
			}
			c.BatchAnswered(now, b, got, again)
		})
	}
	t.sayLuck(s, "a batch", l)
	t.send(s, l, s.timeout, run, answered, failed)
}

func (t *trial) sayLuck(s *session, what string, l luck) {
	if l.fate != arrives {
		t.say("%s: %s%s, %v there, %v back, %v later", s.name, what, fates[l.fate], l.there, l.back, l.later)
	}
}

// batchEnds takes the end of a batch, and sends the next one.
func (t *trial) batchEnds(s *session, how func(c *core.Core, now time.Duration)) {
	var next *core.Batch
	t.step(s, func(c *core.Core, now time.Duration) {
		how(c, now)
		next = c.NextBatch(now)
	})
	t.sendBatch(s, next, false, true)
}

// asksFor are the UUIDs that x asks for.
func asksFor(x message.Exchange) []string {
	ids := slices.Concat(x.Waits, x.Tries)
	for _, a := range x.Ask {
		_, more := parsed(a.Request)
		ids = append(ids, more...)
	}
	return ids
}

func names(x message.Exchange, id string) bool { return slices.Contains(asksFor(x), id) }

// exchangeOf executes a batch. Where the order of UUIDs is of no importance it is made the same in each run
// of a history: cores keep some in maps.
func (t *trial) exchangeOf(s *session, b *core.Batch, x message.Exchange) (message.Exchanged, error) {
	x.Load = false
	x.Release, x.Drop = slices.Sorted(slices.Values(x.Release)), slices.Sorted(slices.Values(x.Drop))
	got, err := t.exchange(x)
	if err == nil {
		dropped := slices.Clone(x.Release)
		for _, d := range x.Drop {
			_, ids := parsed(d)
			dropped = append(dropped, ids...)
		}
		s.dropping = slices.DeleteFunc(s.dropping, func(d *dropping) bool { return slices.Contains(dropped, d.id) })
	}
	for _, id := range asksFor(x) {
		if b != s.latest || s.dead || !s.core.Accounts(id) {
			t.astray[id] = true // its sender has given it up
		}
	}
	if b == s.latest && err == nil {
		t.executed(s, x)
	}
	return got, err
}

// heardOf notes what a session has been told: of that it knows from now on, though it may have given it up.
func (t *trial) heardOf(s *session, got message.Exchanged) {
	for _, id := range got.Granted {
		delete(t.astray, id)
		delete(s.ended, id)
	}
	for _, id := range got.Refused {
		delete(t.revoked, id)
	}
}

// executed notes that Redis has seen what s waits for.
func (t *trial) executed(s *session, x message.Exchange) {
	for _, id := range asksFor(x) {
		if r := s.requestOf(id); r != nil && !r.seen {
			t.checkOrder(s, r, x)
			r.seen, r.asked = true, t.now
		}
	}
}

// call sends a call of the heartbeat.
func (t *trial) call(s *session) {
	owed := make(map[*core.Pool]int)
	for _, p := range s.core.Pools() {
		if n := p.Owner.(*pool).owed; n > 0 {
			owed[p] = n
		}
	}
	var k *core.Call
	t.step(s, func(c *core.Core, now time.Duration) { k = c.NextCall(now, owed) })
	if k != nil {
		t.sendCall(s, k, 3)
	}
}

func (t *trial) sendCall(s *session, k *core.Call, tries int) {
	l := t.luckOf(s, "call")
	var got message.Renewed
	var asserted []string
	run := func() {
		x := inOrder(k.X)
		asserted = nil
		got, _ = t.renew(x)
		if l.fate == doubled && x.Epoch != "" {
			t.twice(func() { got, _ = t.renew(x) })
		}
		// What was released meanwhile is dropped once more when the answer comes.
		for _, id := range x.Permits {
			if s.permitOf(id) == nil || s.permitOf(id).State() != core.Held {
				asserted = append(asserted, id)
				t.astray[id] = true
			}
		}
	}
	sent := t.now
	answered := func() {
		t.step(s, func(c *core.Core, now time.Duration) { c.CallAnswered(now, k, got) })
		s.renewed = max(s.renewed, sent)
		if k.Number() == s.core.LastCall() && got.Epoch == s.core.Epoch() {
			for _, id := range got.Missing {
				delete(t.revoked, id)
			}
		}
		if k.X.Epoch != got.Epoch {
			for _, id := range asserted {
				delete(t.astray, id)
			}
		}
	}
	failed := func(err error) {
		if errors.Is(err, errBroken) && tries > 1 {
			t.step(s, func(c *core.Core, now time.Duration) { c.CallBroke(now) })
			t.sendCall(s, k, tries-1)
			return
		}
		t.say("%s: a call fails: %v", s.name, err)
		s.troubled(t)
		t.step(s, func(c *core.Core, now time.Duration) { c.CallFailed(now, k, err) })
	}
	t.sayLuck(s, "a call", l)
	t.send(s, l, 2*t.plan.ttl, run, answered, failed)
}

// inOrder is x with its permits in one order. Cores keep them in maps.
func inOrder(x message.Renewal) message.Renewal {
	x.Load = false
	x.Permits, x.Backends = slices.Clone(x.Permits), slices.Clone(x.Backends)
	sort.Sort(permitsOf(x))
	return x
}

type permitsOf message.Renewal

func (x permitsOf) Len() int           { return len(x.Permits) }
func (x permitsOf) Less(i, j int) bool { return x.Permits[i] < x.Permits[j] }
func (x permitsOf) Swap(i, j int) {
	x.Permits[i], x.Permits[j] = x.Permits[j], x.Permits[i]
	if x.Backends != nil {
		x.Backends[i], x.Backends[j] = x.Backends[j], x.Backends[i]
	}
}

// hear takes a push.
func (t *trial) hear(s *session, text string) {
	if s.cut {
		return
	}
	t.say("%s hears %s", s.name, text)
	m, ok := message.ParsePush(text)
	if !ok {
		t.failf("bug: a push that cannot be read: %q", text)
	}
	before := s.core.Held()
	t.step(s, func(c *core.Core, now time.Duration) { c.Pushed(now, m) })
	if m.Epoch == s.core.Epoch() && !s.joining.replicated {
		t.heardOf(s, message.Exchanged{Granted: m.IDs})
	}
	if s.joining.replicated && s.core.Held() > before {
		t.failf("settled: %s relies on a push, and wants replicas to have acknowledged what it holds", s.name)
	}
}

func setConfirmed(yes bool) func(c *core.Core, now time.Duration) {
	return func(c *core.Core, now time.Duration) { c.SetConfirmed(now, yes) }
}

// subscribe has a session listen, unless it cannot.
func (t *trial) subscribe(s *session) {
	if s.cut || s.refused || s.dead {
		return
	}
	t.place.listen(s.name)
	s.subscribed = true
	again := s.everSubscribed
	s.everSubscribed = true
	t.at(t.now+t.plan.roundTrip, s, func() {
		if s.cut || !s.subscribed {
			return
		}
		t.step(s, func(c *core.Core, now time.Duration) {
			c.SetConfirmed(now, true)
			if again {
				c.Resubscribed(now)
			}
		})
	})
}

func (t *trial) loseSubscription(s *session) {
	t.place.deafen(s.name)
	s.subscribed = false
}

// replaceSubscription is what the core wants when nothing is heard.
func (t *trial) replaceSubscription(s *session) {
	t.step(s, func(c *core.Core, _ time.Duration) { c.TakeUnheard() })
	t.loseSubscription(s)
	t.subscribe(s)
}
