package redisscript

import (
	"errors"
	"slices"
	"sort"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that sends batches and calls of the heartbeat, and receives replies and
// pushes, as package engine does in sender.go, heartbeat.go and subscription.go.

// sendNext begins to send batches.
func (t *trial) sendNext(s *session) {
	var b *core.Batch
	t.step(s, func(c *core.Core, now time.Duration) {
		s.starting = false
		b = c.NextBatch(now)
	})
	t.sendBatch(s, b, false, true)
}

// sendBatch sends a batch, has the core take what becomes of it, and sends the next one. A batch
// whose connection broke is sent again at once.
func (t *trial) sendBatch(s *session, b *core.Batch, again, mayBreak bool) {
	if b == nil {
		return
	}
	if !again {
		t.checkKnown(s)
		t.checkReturned(s, b.X)
	}
	if mayBreak {
		s.sendings[b]++
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
		if s.sendings[b]--; s.sendings[b] == 0 {
			s.done[b] = true
		}
		s.troubled(t)
		t.batchEnds(s, func(c *core.Core, now time.Duration) {
			c.BatchFailed(now, b, core.Failed, err)
		})
	}
	run := func() {
		got, err = t.exchangeOf(s, b, x)
		if l.fate == doubled && err == nil && x.Offered == 0 {
			t.twice(func() { got, err = t.exchangeOf(s, b, x) })
		}
	}
	answered := func() {
		first := !s.done[b]
		s.done[b] = true
		believed := first && err == nil && x.Epoch == s.core.Epoch()
		if first {
			s.noteRefusal(err != nil)
		}
		t.batchEnds(s, func(c *core.Core, now time.Duration) {
			if err != nil {
				c.BatchFailed(now, b, core.Gone, err)
				return
			}
			if believed {
				t.told(s, got.Granted, got.Refused)
			}
			asked := asksFor(x)
			for _, r := range s.requests {
				if slices.Contains(asked, r.Permits[0].ID) {
					r.heard = t.now
				}
			}
			c.BatchAnswered(now, b, got, again)
		})
		if believed {
			t.checkOffer(s, x.Offerer, got.Promised)
		}
	}
	t.sayLuck(s, "a batch", l)
	t.send(s, l, s.timeout, run, answered, failed)
}

// noteRefusal notes whether Redis has refused a batch. After a second refusal in a row the session
// does not call at once: calls may reach another server than batches.
func (s *session) noteRefusal(refused bool) {
	if !refused {
		s.unknown, s.refusals = false, 0
		return
	}
	s.refusals++
	s.unknown, s.refusedAt = s.refusals == 1, s.core.LastCall()
}

func (t *trial) sayLuck(s *session, what string, l luck) {
	if l.fate != arrives {
		t.say("%s: %s%s, %v there, %v back, %v later", s.name, what, fates[l.fate], l.there,
			l.back, l.later)
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
	for _, r := range x.Requests {
		_, more := parsed(r.Permits)
		ids = append(ids, more...)
	}
	return ids
}

// exchangeOf executes a batch. Cores keep some UUIDs in maps: their order does not matter, and is
// the same in each run of a history.
func (t *trial) exchangeOf(
	s *session, b *core.Batch, x message.Exchange,
) (message.Exchanged, error) {
	x.Load = false
	x.Release, x.Drop = slices.Sorted(slices.Values(x.Release)), slices.Sorted(slices.Values(x.Drop))
	got, err := t.exchange(x)
	if err == nil {
		dropped := slices.Concat(x.Release, idsOf(x.Drop))
		s.dropping = slices.DeleteFunc(s.dropping, func(d *dropping) bool {
			return slices.Contains(dropped, d.id)
		})
	}
	for _, id := range asksFor(x) {
		if b != s.latest || s.dead || !s.core.Accounts(id) {
			t.excused[id] = true // its session has given it up
		}
	}
	if b == s.latest && err == nil {
		t.executed(s, x)
	}
	return got, err
}

// told notes that a session is about to be told of a grant or a refusal. It accounts for what it is
// granted from now on, even if it has given that up. If that was an extension, it has released the
// permit meanwhile, and says so for one lease from then. A refusal counts only for a request that is
// there.
func (t *trial) told(s *session, granted, refused []string) {
	for _, id := range granted {
		delete(t.excused, id)
		if r := s.requestOf(id); r == nil || !r.Extends {
			delete(s.ended, id)
		}
	}
	t.forgetRevoked(slices.DeleteFunc(slices.Clone(refused), func(id string) bool {
		return s.requestOf(id) == nil
	}))
}

// executed notes that Redis has seen what s asks for.
func (t *trial) executed(s *session, x message.Exchange) {
	for _, id := range asksFor(x) {
		if r := s.requestOf(id); r != nil && !r.seen {
			t.checkOrder(s, r)
			r.seen, r.heard = true, t.now
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
		t.checkReport(s, k.X.Pools)
		t.checkSaid(s, k.X)
		t.sendCall(s, k, 3)
	}
}

// sendCall sends a call. A call whose connection broke is sent again at once.
func (t *trial) sendCall(s *session, k *core.Call, tries int) {
	l := t.luckOf(s, "call")
	var got message.Renewed
	var asserted []string // what was not held any more when Redis executed the call
	run := func() {
		x := inOrder(k.X)
		asserted = nil
		got, _ = t.renew(x)
		if l.fate == doubled && x.Epoch != "" {
			t.twice(func() { got, _ = t.renew(x) })
		}
		for _, id := range x.Permits {
			if s.permitOf(id) == nil || s.permitOf(id).State() != core.Held {
				asserted = append(asserted, id)
				t.excused[id] = true // until the reply, with which it is dropped once more
			}
		}
	}
	sent := t.now
	answered := func() {
		known, epoch := s.knownOfFleet(t.now), s.core.Epoch()
		t.step(s, func(c *core.Core, now time.Duration) { c.CallAnswered(now, k, got) })
		t.checkLatest(s, k.Number(), known, epoch)
		s.noteAnswer(t.now, k.Number(), got)
		s.renewed = max(s.renewed, sent)
		s.unknown = s.unknown && k.Number() <= s.refusedAt
		if k.Number() == s.core.LastCall() && got.Epoch == s.core.Epoch() {
			t.forgetRevoked(got.Missing)
		}
		if k.X.Epoch != got.Epoch {
			for _, id := range asserted {
				delete(t.excused, id)
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

// noteAnswer notes what the answer to a call says.
func (s *session) noteAnswer(now time.Duration, call uint64, got message.Renewed) {
	believed := got.Epoch == s.core.Epoch()
	if call > s.answered {
		s.answered, s.elsewhere = call, !believed
		s.elsewhereAt = now
	}
	if believed && call >= s.applied {
		s.applied = call
		clear(s.pauses)
	}
	s.pauses[got.Pause] = true
}

// inOrder sorts the permits of x. Cores keep them in maps.
func inOrder(x message.Renewal) message.Renewal {
	x.Load = false
	x.Permits, x.Backends = slices.Clone(x.Permits), slices.Clone(x.Backends)
	sort.Sort(byUUID(x))
	return x
}

type byUUID message.Renewal

func (x byUUID) Len() int           { return len(x.Permits) }
func (x byUUID) Less(i, j int) bool { return x.Permits[i] < x.Permits[j] }
func (x byUUID) Swap(i, j int) {
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
	if m.Kind == message.PushRetry {
		s.mustAsk = t.now
	}
	t.step(s, func(c *core.Core, now time.Duration) { c.Pushed(now, m) })
	if m.Kind == message.PushGrant && m.Epoch == s.core.Epoch() && !s.joining.replicated {
		t.told(s, m.IDs, nil)
	}
	t.checkPushed(s, before)
}

func setConfirmed(yes bool) func(c *core.Core, now time.Duration) {
	return func(c *core.Core, now time.Duration) { c.SetConfirmed(now, yes) }
}

// subscribe subscribes a session, if it can be.
func (t *trial) subscribe(s *session) {
	if s.cut || s.refused || s.dead {
		return
	}
	t.place.subscribe(s.name)
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
				s.mustAsk = t.now
				c.Resubscribed(now)
			}
		})
	})
}

func (t *trial) loseSubscription(s *session) {
	t.place.unsubscribe(s.name)
	s.subscribed = false
}

// replaceSubscription closes a subscription by which nothing is heard, and opens another one.
func (t *trial) replaceSubscription(s *session) {
	t.step(s, func(c *core.Core, _ time.Duration) { c.TakeUnheard() })
	t.loseSubscription(s)
	t.subscribe(s)
}
