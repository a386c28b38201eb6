package redisscript

import (
	"maps"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The specification: what holds whatever happens to messages, processes, clocks and Redis. Each property is
// one function here, which fails the history. The rest of the model makes things happen.
//
// Of the fleet, after each script:
//
//	capacity  no more are held than the capacity, as Redis counts, and as holders believe
//	lease     a lease ends by time, or by its holder's word
//	turns     first come is first served
//	served    no script leaves room for the head of the queue
//	counts    what Redis counts of pools and minima is what there is
//	recalls   nobody is asked for what nobody needs, nor for what it may keep
//
// Of each session, after everything that happens to it:
//
//	trust     Redis counts what a holder trusts, until after the trust ends
//	account   a session knows of each permit that Redis counts for it
//	loss      a lease is lost when it ends, and is not lost while Redis answers in time
//	settled   a request ends once, and held is what was granted
//	order     the requests of a session reach Redis in their order
//	prompt    what is to be said to Redis is said at once, and said again until it is answered
//	heard     a pool hears of each recall once
//	numbers   permits are counted right, and never exceed Config.Max
//
// At the end, when everything works again:
//
//	rest      no pool waits for what another one has too much of
//	waiters   everybody who waits is granted, once the others give back
//	leak      nothing is held that its holder does not know, and nothing stays in Redis
//
// What the scripts do in detail, the oracle says: model_oracle_test.go.

// An act is one script that was run.
type act struct {
	name     string
	session  string
	now      int64 // as the script saw it
	timeless bool  // it did not look, or could not tell whether the clock was set
	released []string
	asserted []string // UUIDs said to be held
	served   bool     // it was not refused, and the gate was open: the queue must have been served
	counts   bool     // it replaced counts by what its caller says
	pushes   []push
	promised int64 // the offerer's recalls, if some of what it offered is needed
}

// checkScript looks whether what a script did keeps what is promised, however it came about.
func (t *trial) checkScript(before, after *state, a act) {
	var granted []string
	for id := range after.Permits {
		if _, held := before.Permits[id]; !held && !slices.Contains(a.asserted, id) {
			granted = append(granted, id)
		}
	}
	slices.Sort(granted)
	t.checkLease(before, after, a)
	t.checkCapacity(before, after, a, granted)
	t.checkTurns(before, after, a, granted)
	if a.served {
		t.checkServed(after, a)
	}
	t.checkCounts(after, a)
	t.checkRecalls(before, after, a)
	t.countRecalls(before, after)
}

// checkNow looks at the sessions.
func (t *trial) checkNow() {
	t.leaveIfReturned()
	t.checkBelief()
	for _, s := range t.all() {
		t.checkTrust(s)
		t.checkAccount(s)
		t.checkExpiry(s)
		t.checkNumbers(s)
		s.forgetReleased()
	}
}

// believes reports whether a holder may use what p permits: it trusts the lease, and if it recorded a backend
// that has ended, it has recorded that there is none. Without that it asks Redis before it opens another one.
func (t *trial) believes(s *session, p *permit) bool {
	lives := t.postgres[p.ID] != nil
	return s.local(t.now) < p.TrustedUntil() && (lives || !p.covered || p.vacated)
}

func (t *trial) believed() map[string]bool {
	out := make(map[string]bool)
	for _, s := range t.all() {
		for _, p := range s.permits {
			if t.believes(s, p) {
				out[p.ID] = true
			}
		}
	}
	return out
}

// checkCapacity: when something is granted, no more are held than the capacity. Held is what Redis counts, what
// a holder believes, and what a recorded backend uses; what is kept for minima is kept.
func (t *trial) checkCapacity(before, after *state, a act, granted []string) {
	capacity := after.num("cap")
	all := t.believed()
	for id := range after.Permits {
		all[id] = true
	}
	for id, b := range t.postgres {
		_, quarantined := after.Quarantine[id]
		if b.recorded && !quarantined { // else it is counted, or the bound has passed
			all[id] = true
		}
	}
	// A capacity that was lowered drains: what was held may be held on, and the number cannot grow.
	// Of a state that was lost, grants may still be on their way.
	if allowed := max(int(capacity), min(t.allowed, len(all))); t.now >= t.lossesUntil || allowed > t.allowed {
		t.allowed = allowed
	}
	if len(granted) == 0 {
		return
	}
	if held := int64(len(after.Permits)); held > capacity {
		t.failf("capacity: %s granted %q: %d are held, the capacity is %d", a.name, granted, held, capacity)
	}
	if int64(len(all)) > capacity && !t.inWindow() {
		t.failf("capacity: %s granted %q: with those that their holders still trust, or whose backend lives, %d are held, the capacity is %d\n%q",
			a.name, granted, len(all), capacity, slices.Sorted(maps.Keys(all)))
	}
	short := func(s *state) int64 { return int64(len(s.Permits)) + t.kept(s) }
	// A heartbeat keeps more before it grants anything, if it has a minimum accepted, or says that more is owed.
	keepsMore := !maps.Equal(minima(before), minima(after)) || a.counts && owed(after) > owed(before)
	if now := short(after); now > capacity && now > short(before) && !keepsMore && !t.damaged {
		t.failf("capacity: %s granted %q out of what is kept for minima: %d held and kept, the capacity is %d", a.name, granted, now, capacity)
	}
}

// inWindow reports whether it is one of the cases in which more than the capacity can be held for a while.
func (t *trial) inWindow() bool { return t.plan.windows || t.unnoticed || t.tampered }

// checkBelief: at every moment holders believe in no more than the capacity.
func (t *trial) checkBelief() {
	if n := len(t.believed()); n > t.allowed && !t.inWindow() {
		t.failf("capacity: holders believe in %d permits, %d may be held: %q", n, t.allowed, keysInOrder(t.believed()))
	}
}

// checkTrust: what a holder believes in, Redis counts for it, and goes on to count until after that trust ends
// by itself. A session that does not know yet that the state was lost is excepted: see capacity.
func (t *trial) checkTrust(s *session) {
	epoch := t.before.Meta["epoch"]
	if len(t.before.Permits) == 0 && t.before.num("count") > 1 {
		epoch = "" // the set was deleted, and the next script will find that
	}
	if s.core.Epoch() != epoch || t.unnoticed {
		return
	}
	for _, p := range s.permits {
		if !t.believes(s, p) || t.revoked[p.ID] {
			continue
		}
		expiry, counted := t.before.Permits[p.ID]
		if _, quarantined := t.before.Quarantine[p.ID]; !counted || quarantined {
			t.failf("trust: %s trusts %s for %v more, and Redis does not count it", s.name, p.ID, p.TrustedUntil()-s.local(t.now))
		}
		left := time.Duration(expiry-t.scriptClock()+t.place.late()) * time.Millisecond
		if trusted := s.world(p.TrustedUntil()) - t.now; trusted > left {
			t.failf("trust: %s trusts %s for %v longer than its lease lasts", s.name, p.ID, trusted-left)
		}
	}
}

// checkAccount: each permit that Redis counts for a session, and each request in its queue, is known there: held,
// asked for or on its way to be dropped. Or a permit was lost, and its holder has not given it back yet. Excepted
// is what arrived though its sender had given it up, and what could not be dropped for a whole lease.
func (t *trial) checkAccount(s *session) {
	if s.core.Left() {
		return
	}
	knows := func(id string) bool {
		ended, is := s.ended[id]
		return t.astray[id] || s.core.Accounts(id) || is && s.local(t.now)-s.local(ended) >= t.plan.ttl
	}
	for id := range t.before.Permits {
		_, quarantined := t.before.Quarantine[id]
		if sessionOf(id) != s.name || quarantined || t.ends[id] <= t.now || knows(id) {
			continue
		}
		if p := s.permitOf(id); p == nil || p.State() != core.Lost {
			t.failf("account: Redis counts %s for %v more, and %s knows nothing of it", id, t.ends[id]-t.now, s.name)
		}
	}
	for request := range t.before.Queue {
		if _, ids := parsed(request); sessionOf(ids[0]) == s.name && !knows(ids[0]) {
			t.failf("account: %q is in Redis's queue, and %s knows nothing of it", request, s.name)
		}
	}
}

// steady is how long a session must have had no trouble before no lease can be lost by it any more.
func (t *trial) steady() time.Duration { return t.plan.ttl }

// checkLoss: a lease that Redis answers for in time is not lost. The pool that has lost one is told.
func (t *trial) checkLoss(s *session, p *core.Permit, events []core.Event) {
	if p.Pool != nil && !s.core.Left() && !slices.ContainsFunc(events, func(e core.Event) bool {
		return e.Kind == core.LeaseLost && e.Permits[0] == p
	}) {
		t.failf("loss: %s has lost %s, and does not tell the pool", s.name, p.ID)
	}
	_, counted := t.before.Permits[p.ID]
	_, quarantined := t.before.Quarantine[p.ID]
	if left := p.Owner.(*permit).trusted - s.local(t.now); counted && !quarantined && left > 0 && !s.core.Left() {
		t.failf("loss: %s loses %s, which Redis counts, and which it could trust for %v more", s.name, p.ID, left)
	}
	if s.core.Left() || s.cut || t.now-max(s.troubleAt, t.stalledUntil) <= t.steady() {
		return
	}
	if counted && !quarantined {
		t.failf("loss: %s loses %s, and nothing has gone wrong for %v", s.name, p.ID, t.now-s.troubleAt)
	}
}

// checkExpiry: a permit is lost when its trust ends. The core asks to be called then at the latest; and after
// a call nothing is held that is not trusted.
func (t *trial) checkExpiry(s *session) {
	if s.paused || s.core.Left() {
		return
	}
	for _, p := range s.permits {
		if p.State() != core.Held {
			continue
		}
		if wake := s.core.WakeAt(); wake == 0 || wake > p.TrustedUntil() {
			t.failf("loss: %s wants to be called at %v, and the trust in %s ends at %v", s.name, wake, p.ID, p.TrustedUntil())
		}
		if now := s.local(t.now); now > max(p.TrustedUntil(), s.local(s.resumed))+2*maxLateness {
			t.failf("loss: %s has not lost %s, the trust in which has ended %v ago", s.name, p.ID, now-p.TrustedUntil())
		}
	}
}

// checkSettled: a request ends once. If it was granted, its permits are held.
func (t *trial) checkSettled(s *session, r *core.Request, err error) {
	if s.over[r] {
		t.failf("settled: a request for %s ends twice", ids(r.Permits))
	}
	some := false
	for _, p := range r.Permits {
		switch held := p.State() == core.Held; {
		case held && err != nil && !r.Extends:
			t.failf("settled: %s is held, and its caller is told %v", p.ID, err)
		case err == nil && r.Pool == nil && p.TrustedUntil() <= s.local(t.now):
			t.failf("settled: %s is not held, and its caller is told that it is", p.ID)
		default:
			some = some || held
		}
	}
	if err == nil && !some {
		t.failf("settled: a pool is granted nothing of %s", ids(r.Permits))
	}
}

// checkGivenUp: nothing is held of what a caller gave up.
func (t *trial) checkGivenUp(r *request) {
	for _, p := range r.Permits {
		if p.State() == core.Held && !r.Extends {
			t.failf("settled: %s is held, and its caller has given it up", p.ID)
		}
	}
}

// checkKnown: a session asks nothing of a Redis that may have forgotten it: that has answered no call for a lease.
func (t *trial) checkKnown(s *session) {
	if silent := s.local(t.now) - s.local(s.renewed); silent >= t.plan.ttl {
		t.failf("order: %s sends a batch, and no call was answered for %v", s.name, silent)
	}
}

// checkOrder: what waits for single permits reaches Redis in the order in which it was asked for, as long as
// nothing goes wrong. r arrives with x.
func (t *trial) checkOrder(s *session, r *request, x message.Exchange) {
	single := func(r *request) bool { return r.Kind == message.Wait && len(r.Permits) == 1 }
	if s.joining.max > 0 || !single(r) || r.trouble < s.trouble {
		return
	}
	for _, earlier := range s.requests {
		if earlier == r {
			return
		}
		if single(earlier) && !earlier.seen && earlier.trouble == s.trouble {
			t.failf("order: %s asks for %s, and passes %s", s.name, r.Permits[0].ID, earlier.Permits[0].ID)
		}
	}
}

// repeats bounds the pause after something went wrong, before what was not answered is said again.
func (t *trial) repeats() time.Duration {
	pause := min(t.plan.retry, core.MaxRetryPause)
	return pause + pause/8 + t.plan.ttl/4 + 2*maxLateness + time.Millisecond
}

// checkPrompt: when nothing more happens at this moment, and Redis can be reached, and nothing is on its way,
// then no request and no release lies about. After something went wrong there may be a pause. And what waits
// in Redis's queue is asked for again every RetryInterval.
func (t *trial) checkPrompt() {
	for _, s := range t.all() {
		if s.paused || s.cut || s.leaves || s.travelling > 0 || t.now < t.stalledUntil {
			continue
		}
		if since := max(s.troubleAt, t.stalledUntil); since > 0 && t.now-since <= t.repeats() {
			t.checkPromptAfter(s, s.trouble)
		} else {
			t.checkPromptAfter(s, 0)
		}
	}
}

// checkPromptAfter looks at what was said since s had so much trouble.
func (t *trial) checkPromptAfter(s *session, trouble int) {
	for _, d := range s.dropping {
		// What the session does not know any more, account looks for.
		if d.trouble >= trouble && s.core.Accounts(d.id) {
			t.failf("prompt: %s has released %s, and does not say so", s.name, d.id)
		}
	}
	for _, r := range s.requests {
		switch {
		case r.trouble < trouble || !r.Kind.Waits():
		case !r.seen && s.joining.max == 0:
			t.failf("prompt: %s wants %s, and does not say so", s.name, ids(r.Permits))
		case r.seen && t.now-r.asked > t.plan.retry+t.plan.retry/8+t.repeats():
			t.failf("prompt: %s waits for %s, and has not asked for %v", s.name, ids(r.Permits), t.now-r.asked)
		}
	}
}

// checkNumbers: what the core counts is what there is.
func (t *trial) checkNumbers(s *session) {
	held, byPool := 0, make(map[*core.Pool]int)
	for _, p := range s.permits {
		if p.State() == core.Held {
			held++
			byPool[p.Pool]++
		}
	}
	if n := s.core.Held(); n != held && !s.core.Left() {
		t.failf("numbers: %s counts %d permits, and holds %d", s.name, n, held)
	}
	if s.joining.max > 0 && held > s.joining.max {
		t.failf("numbers: %s holds %d permits, its maximum is %d", s.name, held, s.joining.max)
	}
	for _, p := range s.pools {
		if p.core.Held() > 0 && !slices.Contains(s.core.Pools(), &p.core) && !s.core.Left() {
			t.failf("numbers: %s holds permits, and its session does not report it", shownPool(s, p))
		}
		if n := p.core.Held(); n != byPool[&p.core] && !s.core.Left() {
			t.failf("numbers: %s counts %d permits, and holds %d", shownPool(s, p), n, byPool[&p.core])
		}
	}
}

// checkHeard: no recall is heard twice. n are new to a pool; below zero, they are taken back.
func (t *trial) checkHeard(s *session, p *pool, n int) {
	t.toldRecalled[s.name] += int64(max(0, n))
	t.toldWithdrawn[s.name] += int64(max(0, -n))
	if told, recalled := t.toldRecalled[s.name], t.recalled[s.name]; told > recalled {
		t.failf("heard: %s is told of %d recalls, the last %d of them %s, and there were %d", s.name, told, n, shownPool(s, p), recalled)
	}
	if kept, withdrawn := t.toldWithdrawn[s.name], t.withdrawn[s.name]; kept > withdrawn {
		t.failf("heard: %s is told of %d recalls that are taken back, and there were %d", s.name, kept, withdrawn)
	}
}

// checkLeft: of what a session held, or had to say that it is released, nothing is counted once it has left; but for
// permits that cover a backend, which its pool may not have ended.
func (t *trial) checkLeft(s *session, known []string) {
	for _, id := range known {
		_, counted := t.before.Permits[id]
		_, covers := t.before.Backends[id]
		if _, quarantined := t.before.Quarantine[id]; counted && !covers && !quarantined && !t.astray[id] {
			t.failf("leak: %s has left, and Redis counts %s", s.name, id)
		}
	}
}
