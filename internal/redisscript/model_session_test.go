package redisscript

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is a session: the core that ships, and a driver that does what package engine
// does around it. There are no goroutines here. What engine does in one, is an occurrence.

// A session is one process of the fleet.
type session struct {
	name    string
	joining joining
	core    *core.Core
	began   time.Duration // the world's time when its clock showed offset
	offset  time.Duration
	drift   time.Duration // ‰ by which its clock is fast
	timeout time.Duration // of a batch
	random  *rand.Rand
	epochs  int
	over    map[*core.Request]bool   // settled
	ended   map[string]time.Duration // when a permit was released, or its request withdrawn

	paused, cut, dead bool
	subscribed        bool // as the server sees it
	refused           bool // it cannot subscribe at present
	everSubscribed    bool
	lastPush          time.Duration // when the last push arrives
	pushesLost        int
	held              []func()      // what happens once it runs again
	resumed           time.Duration // when it last went on
	messages          int
	travelling        int           // messages whose end it waits for
	trouble           int           // how often something went wrong
	troubleAt         time.Duration // when it did last

	permits    []*permit  // that are held, lost, or asked for
	requests   []*request // not settled, in the order in which they were made
	dropping   []*dropping
	pools      []*pool
	events     []core.Event
	delivering bool
	starting   bool
	latest     *core.Batch
	leaves     bool // it is being closed
}

// A permit, and the backend that a pool has under it.
type permit struct {
	core.Permit
	told       bool // its pool knows that it holds it
	connecting bool // its pool waits for a record
	covered    bool // it was said to cover a backend, once
	vacated    bool // since then Redis has confirmed that it covers none
}

// A request of a caller, of a pool, or of the core itself.
type request struct {
	*core.Request
	trouble int           // of its session, when it was made
	seen    bool          // Redis has executed it
	asked   time.Duration // when an answer to it was last heard
	ofPool  *pool         // whose try it is
	trying  bool          // that try has not ended
	caller  bool          // a caller waits for it
}

// A dropping is a release that Redis has not executed yet.
type dropping struct {
	id      string
	since   time.Duration
	trouble int
}

// local is the time that a session's clock shows.
func (s *session) local(now time.Duration) time.Duration {
	d := now - s.began
	return s.offset + d + d/1000*s.drift
}

// world is the first time of the world at which a session's clock shows at least that.
func (s *session) world(local time.Duration) time.Duration {
	d := local - s.offset
	at := s.began + d*1000/(1000+s.drift)
	for s.local(at) < local {
		at += time.Microsecond
	}
	return at
}

// troubled notes that something went wrong.
func (s *session) troubled(t *trial) {
	s.trouble++
	s.troubleAt = t.now
}

// all are the sessions that live.
func (t *trial) all() []*session {
	var list []*session
	for _, s := range t.sessions {
		if s != nil {
			list = append(list, s)
		}
	}
	return append(list, t.leaving...)
}

func (t *trial) named(name string) *session {
	for _, s := range t.all() {
		if s.name == name {
			return s
		}
	}
	return nil
}

// A joining is what a session declares.
type joining struct {
	capacity, min, max, weight, maxWaiters int
	replicated                             bool
}

// join starts a session in a free slot.
func (t *trial) join(slot int, j joining) {
	t.born++
	s := &session{
		name: fmt.Sprintf("%08x-%04x-8%02x0", 0xa0+slot, t.born, j.weight), joining: j,
		began: t.now, offset: []time.Duration{time.Nanosecond, 7 * time.Millisecond, 3 * time.Hour}[t.born%3],
		timeout: max(t.plan.ttl-t.plan.ttl/10, 20*time.Millisecond), over: make(map[*core.Request]bool), ended: make(map[string]time.Duration),
	}
	if t.plan.drifts {
		s.drift = time.Duration(t.born%3-1) * 5
	}
	s.random = t.chance(s.name)
	s.core = core.New(core.Config{
		Base: "p-n", Session: s.name, TTL: t.plan.ttl, Margin: t.plan.ttl / 10, RetryInterval: t.plan.retry,
		Capacity: j.capacity, Min: j.min, Max: j.max, MaxWaiters: j.maxWaiters, Replicated: j.replicated,
		NewPermit: func() *core.Permit {
			p := &permit{}
			p.Owner = p
			s.permits = append(s.permits, p)
			return &p.Permit
		},
		NewEpoch: func() string { s.epochs++; return fmt.Sprintf("epoch-%s-%d", s.name, s.epochs) },
		Random:   func(below time.Duration) time.Duration { return time.Duration(s.random.Int64N(int64(below) + 1)) },
	})
	t.say("%s joins: %+v", s.name, j)
	t.unnoticed = t.unnoticed || t.set != t.lastSet && len(t.place.listeners()) == 0
	// The first call has what luck a call has, but time does not pass.
	for tries := 0; ; tries++ {
		var k *core.Call
		t.step(s, func(c *core.Core, now time.Duration) { k = c.NextCall(now, nil) })
		l := t.luckOf(s, "join")
		if tries == 3 {
			l.fate = arrives
		}
		if l.fate == requestLost {
			t.step(s, func(c *core.Core, now time.Duration) { c.CallFailed(now, k, errLate) })
			continue
		}
		got, err := t.renew(inOrder(k.X))
		if errors.As(err, new(message.RefusedMin)) {
			return
		}
		if l.fate == answerLost || l.fate == breaks {
			t.step(s, func(c *core.Core, now time.Duration) { c.CallFailed(now, k, errBroken) })
			continue
		}
		t.sessions[slot] = s
		t.step(s, func(c *core.Core, now time.Duration) {
			c.CallAnswered(now, k, got)
			c.Joined(now)
		})
		break
	}
	t.subscribe(s)
}

// step is the only way to a core, as in package engine, and the one place where its effects are carried out.
func (t *trial) step(s *session, f func(c *core.Core, now time.Duration)) {
	if s.dead {
		return
	}
	f(s.core, s.local(t.now))
	fx := s.core.Take()
	if s.core.Down() != nil {
		s.troubled(t)
	}
	for _, p := range fx.Trust {
		if p.State() == core.Lost {
			t.checkLoss(s, p, fx.Events)
		}
	}
	if !s.core.Left() {
		if fx.Flush && !s.starting {
			s.starting = true
			t.soon(s, func() { t.sendNext(s) })
		}
		if fx.Heartbeat {
			t.soon(s, func() { t.call(s) })
		}
		if fx.Resend != nil {
			t.soon(s, func() { t.sendBatch(s, fx.Resend, true, true) })
		}
		t.reap(s, fx)
	}
	if fx.Replace {
		t.soon(s, func() { t.replaceSubscription(s) })
	}
	s.events = append(s.events, fx.Events...)
	if len(s.events) > 0 && !s.delivering {
		s.delivering = true
		t.at(t.now+t.untilTold(s), s, func() { t.tellAll(s) })
	}
	for _, r := range fx.Settled {
		t.settled(s, r)
	}
	for _, r := range s.core.Unsettled() {
		if !slices.ContainsFunc(s.requests, func(q *request) bool { return q.Request == r }) {
			t.noteRequest(s, r)
		}
	}
	for _, l := range fx.Logs {
		t.say("%s: %s %v", s.name, l.Text, l.Args[2:])
	}
}

func (t *trial) tick(s *session) { t.step(s, (*core.Core).Tick) }

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
			if err != nil {
				c.BatchFailed(now, b, core.Gone, err)
				return
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

// executed notes that Redis has seen what s waits for.
func (t *trial) executed(s *session, x message.Exchange) {
	for _, id := range asksFor(x) {
		if r := s.requestOf(id); r != nil && !r.seen {
			t.checkOrder(s, r, x)
			r.seen, r.asked = true, t.now
		}
	}
}

func (s *session) requestOf(id string) *request {
	for _, r := range s.requests {
		for _, p := range r.Permits {
			if p.ID == id {
				return r
			}
		}
	}
	return nil
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
	answered := func() {
		t.step(s, func(c *core.Core, now time.Duration) { c.CallAnswered(now, k, got) })
		if k.X.Epoch != got.Epoch {
			for _, id := range asserted {
				delete(t.astray, id)
			}
		}
	}
	failed := func(err error) {
		if errors.Is(err, errBroken) && tries > 1 {
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

// permitOf is nil for one that was released.
func (s *session) permitOf(id string) *permit {
	for _, p := range s.permits {
		if p.ID == id {
			return p
		}
	}
	return nil
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

// want makes a request of a caller, that waits for it as long as patience.
func (t *trial) want(s *session, kind message.Kind, patience time.Duration, permits ...*core.Permit) *request {
	return t.submit(s, nil, patience, &core.Request{Kind: kind, Permits: permits, Extends: kind == message.Hold})
}

// tryFor makes a request of a pool that does not wait.
func (t *trial) tryFor(s *session, p *pool, r *core.Request) { t.submit(s, p, 0, r) }

func (t *trial) submit(s *session, of *pool, patience time.Duration, asks *core.Request) *request {
	r := t.noteRequest(s, asks)
	r.caller, r.ofPool, r.trying = true, of, of != nil
	t.step(s, func(c *core.Core, now time.Duration) {
		if !asks.Kind.Waits() {
			patience = c.TryPatience()
		}
		c.Submit(now, asks)
	})
	if patience > 0 {
		t.at(t.now+patience, s, func() {
			if !t.calm {
				t.giveUp(s, r)
			}
		})
	}
	return r
}

func (t *trial) noteRequest(s *session, r *core.Request) *request {
	q := &request{Request: r, trouble: s.trouble, asked: t.now}
	s.requests = append(s.requests, q)
	return q
}

// giveUp ends the patience of a caller.
func (t *trial) giveUp(s *session, r *request) {
	if !r.caller {
		return
	}
	r.caller = false
	t.say("%s gives up what it asked for: %s", s.name, ids(r.Permits))
	was := make([]core.State, len(r.Permits))
	for i, p := range r.Permits {
		was[i] = p.State()
	}
	t.step(s, func(c *core.Core, now time.Duration) { _ = c.GiveUp(now, r.Request, 0) })
	for i, p := range r.Permits {
		if p.State() == core.Released && was[i] != core.Released {
			t.dropped(s, p.ID)
		}
	}
	t.tryEnds(s, r)
}

func ids(list []*core.Permit) string {
	var out []string
	for _, p := range list {
		out = append(out, p.ID)
	}
	return strings.Join(out, " ")
}

// settled is the end of a request, as the core sees it. Its caller goes on a little later.
func (t *trial) settled(s *session, r *core.Request) {
	_, err := r.Settled()
	t.say("%s: settled, %s: %v", s.name, ids(r.Permits), err)
	t.checkSettled(s, r, err)
	s.over[r] = true
	if err != nil && !r.Extends {
		for _, p := range r.Permits {
			s.ended[p.ID] = t.now
		}
	}
	i := slices.IndexFunc(s.requests, func(q *request) bool { return q.Request == r })
	if i < 0 {
		return // it was made in this very step
	}
	q := s.requests[i]
	s.requests = slices.Delete(s.requests, i, i+1)
	switch {
	case !q.caller:
	case s.random.IntN(30) == 0 && !t.calm:
		t.soon(s, func() { t.giveUp(s, q) }) // it gave up at this very moment
	default:
		q.caller = false
		t.tryEnds(s, q)
		if p := q.ofPool; p != nil && err == nil {
			got := r.Permits[0].Owner.(*permit)
			if got.told = true; p.gone || s.leaves {
				t.soon(s, func() { t.give(s, p, got) })
			}
		}
	}
}

func (t *trial) tryEnds(s *session, r *request) {
	if p := r.ofPool; p != nil && r.trying {
		r.trying = false
		t.step(s, func(c *core.Core, _ time.Duration) { c.TryEnds(&p.core) })
	}
}

// dropped notes that Redis is to be told of a release.
func (t *trial) dropped(s *session, id string) {
	s.dropping = append(s.dropping, &dropping{id, t.now, s.trouble})
	s.ended[id] = t.now
}

// release gives a permit back that no pool holds, held or lost.
func (t *trial) release(s *session, p *permit) {
	t.say("%s releases %s", s.name, p.ID)
	var d *core.Drop
	t.step(s, func(c *core.Core, now time.Duration) { d = c.Release(now, &p.Permit) })
	if d != nil {
		t.dropped(s, p.ID)
	}
}

// mine are the permits in one of those states, of one pool or of none.
func (s *session) mine(of *core.Pool, states ...core.State) (list []*permit) {
	for _, p := range s.permits {
		if p.Pool == of && slices.Contains(states, p.State()) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *permit) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// forgetReleased forgets what is over.
func (s *session) forgetReleased() {
	s.permits = slices.DeleteFunc(s.permits, func(p *permit) bool { return p.State() == core.Released })
}

// close begins to close a session. It leaves once its pools have given everything back, or after a while.
func (t *trial) close(slot int, hasty bool) {
	s := t.sessions[slot]
	t.say("%s closes", s.name)
	t.sessions[slot] = nil
	t.leaving = append(t.leaving, s)
	s.leaves = true
	t.step(s, func(c *core.Core, now time.Duration) { c.Close(now) })
	wait := 3 * time.Second
	if hasty {
		wait = 0
	}
	t.at(t.now+wait, s, func() { t.leave(s) })
}

// leaveIfReturned lets sessions leave that have given everything back.
func (t *trial) leaveIfReturned() {
	for _, s := range slices.Clone(t.leaving) {
		if !s.paused && !s.core.Left() && s.core.Returned() && len(s.events) == 0 {
			t.leave(s)
		}
	}
}

// leave ends a session. What was on its way may bring back what the script removed: then it leaves twice.
func (t *trial) leave(s *session) {
	if s.dead || s.core.Left() {
		return
	}
	var requests []string
	t.step(s, func(c *core.Core, now time.Duration) { requests = c.Leave(now) })
	crossing := s.core.Crossing()
	t.endsAll(s)
	if !s.cut && t.luckOf(s, "leave").fate != requestLost {
		t.leaveScript(s, requests)
		if !crossing {
			t.checkLeft(s)
		}
	}
	if !crossing {
		t.gone(s)
		return
	}
	t.at(t.now+time.Second, s, func() {
		t.step(s, func(c *core.Core, _ time.Duration) { requests = append(requests, c.Leftover()...) })
		if !s.cut {
			t.leaveScript(s, requests)
		}
		t.gone(s)
	})
}

// gone ends what is left of a session.
func (t *trial) gone(s *session) {
	s.dead = true
	t.loseSubscription(s)
	t.leaving = slices.DeleteFunc(t.leaving, func(other *session) bool { return other == s })
}

// crash ends a session as SIGKILL does: its connections end with it, at once or a moment later, and Redis
// hears nothing.
func (t *trial) crash(slot int, atOnce bool) {
	s := t.sessions[slot]
	t.say("%s crashes", s.name)
	t.sessions[slot] = nil
	end := func() { t.endsAll(s) }
	for id, b := range t.postgres {
		if sessionOf(id) == s.name && !b.recorded {
			delete(t.postgres, id)
		}
	}
	if atOnce {
		end()
	} else {
		t.at(t.now+60*time.Millisecond, nil, end)
	}
	t.gone(s)
}

// keysInOrder lists the keys of a map.
func keysInOrder[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
