package redisscript

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The specification of a session, which model_specification_test.go begins.

// checkTrust: Redis counts each permit that a session trusts, and its lease lasts until after the
// trust ends. A session that does not know yet that the state was lost is excepted. A permit that an
// operator revoked is counted for nobody, until its holder has lost it.
func (t *trial) checkTrust(s *session) {
	if s.core.Epoch() != t.epochNow() || t.unnoticed {
		return
	}
	for _, p := range s.permits {
		if !t.believes(s, p) || t.revoked[p.ID] {
			continue
		}
		_, counted := t.before.Permits[p.ID]
		if !t.before.counts(p.ID) && !(counted && t.evicted[p.ID]) {
			t.failf("trust: %s trusts %s for %v more, and Redis does not count it",
				s.name, p.ID, p.TrustedUntil()-s.local(t.now))
		}
		millis := t.before.Permits[p.ID] - t.scriptClock() + t.place.late()
		trusted := s.world(p.TrustedUntil()) - t.now
		if left := time.Duration(millis) * time.Millisecond; trusted > left {
			t.failf("trust: %s trusts %s for %v longer than its lease lasts",
				s.name, p.ID, trusted-left)
		}
	}
}

// checkRecord: what Redis has confirmed to be the backend of a permit, it keeps on record.
func (t *trial) checkRecord(s *session) {
	if s.core.Epoch() != t.epochNow() || t.damaged {
		return
	}
	for _, p := range s.permits {
		b, record := t.postgres[p.ID], t.before.Backends[p.ID]
		if b != nil && b.recorded && t.before.counts(p.ID) &&
			!strings.HasPrefix(record, b.tag+" ") {
			t.failf("backend: %s covers %s, and %q is recorded", p.ID, b.tag, record)
		}
	}
}

// checkAccount: a session accounts for each of its permits that Redis counts, and for each of its
// requests in the queue. It holds the permit, asks for it, or is about to drop it. A permit that
// was lost stays counted until its holder gives it back. A permit that was removed by hand can come
// into the queue again, by a batch that was long on its way.
func (t *trial) checkAccount(s *session) {
	if s.core.Left() {
		return
	}
	for id := range t.before.Permits {
		if sessionOf(id) != s.name || !t.before.counts(id) || t.ends[id] <= t.now || t.knows(s, id) {
			continue
		}
		if p := s.permitOf(id); p == nil || p.State() != core.Lost {
			t.failf("account: Redis counts %s for %v more, and %s knows nothing of it",
				id, t.ends[id]-t.now, s.name)
		}
	}
	for request := range t.before.Queue {
		if _, ids := parsed(request); sessionOf(ids[0]) == s.name && !t.knows(s, ids[0]) &&
			!t.byHand[ids[0]] {
			t.failf("account: %q is in Redis's queue, and %s knows nothing of it", request, s.name)
		}
	}
}

// checkLoss: a pool is told of its lost permit. A lease that Redis counts is not lost before its
// trust ends, nor while nothing goes wrong, nor because two messages of the session were lost or
// late. A permit is excepted that was revoked in a state that is lost by now, while its session
// knows no later state. An answer of before the loss says that the permit is not held. Redis counts
// it only because a call that crossed that answer has re-asserted it. Its holder stops all the same,
// as it must after a revocation. The permit is free when it is given back, or with its lease.
func (t *trial) checkLoss(s *session, p *permit, events []core.Event) {
	if s.core.Left() {
		return
	}
	told := func(e core.Event) bool { return e.Kind == core.LeaseLost && e.Permits[0] == &p.Permit }
	left := p.trusted - s.local(t.now)
	switch counted := t.before.counts(p.ID); {
	case p.Pool != nil && !slices.ContainsFunc(events, told):
		t.failf("loss: %s has lost %s, and does not tell the pool", s.name, p.ID)
	case counted && left > 0 && !t.revokedBeforeLoss(s, p.ID):
		t.failf("loss: %s loses %s, which Redis counts, and could trust it for %v more",
			s.name, p.ID, left)
	case counted && !s.cut && t.quiet(s) > t.plan.ttl:
		t.failf("loss: %s loses %s, and nothing has gone wrong for %v", s.name, p.ID, t.quiet(s))
	case counted && t.survivesMishaps(s, p):
		t.failf("loss: %s loses %s because of messages at %v", s.name, p.ID, s.mishaps)
	}
}

// checkExpiry: a core asks to be called no later than when a trust ends, and loses the lease then.
func (t *trial) checkExpiry(s *session) {
	if s.paused || s.core.Left() {
		return
	}
	for _, p := range s.permits {
		if p.State() != core.Held {
			continue
		}
		if wake := s.core.WakeAt(); wake == 0 || wake > p.TrustedUntil() {
			t.failf("loss: %s wants to be called at %v, and the trust in %s ends at %v",
				s.name, wake, p.ID, p.TrustedUntil())
		}
		over := max(p.TrustedUntil(), s.local(s.resumed)) + 2*maxLateness
		if now := s.local(t.now); now > over {
			t.failf("loss: %s has not lost %s, the trust in which ended %v ago",
				s.name, p.ID, now-p.TrustedUntil())
		}
	}
}

// checkStops: a session that is subscribed stops using what an operator has revoked, as soon as a
// push and a call can have told it. Excepted is one for which anything has gone wrong since.
func (t *trial) checkStops(s *session) {
	for _, p := range s.permits {
		at, revoked := t.evictedAt[p.ID]
		_, still := t.before.Quarantine[p.ID]
		if revoked && still && t.believes(s, p) && max(s.troubleAt, t.stalledUntil) < at &&
			t.now >= at+4*t.plan.roundTrip {
			t.failf("evicted: %s still trusts %s, which was revoked %v ago",
				s.name, p.ID, t.now-at)
		}
	}
}

// checkSettled: a request ends once. Permits are held if it was granted, and not if it was refused.
// An extension that was granted gives a whole lease from when it was asked for.
func (t *trial) checkSettled(s *session, r *core.Request, err error) {
	if s.over[r] {
		t.failf("settled: a request for %s ends twice", ids(r.Permits))
	}
	some := false
	for _, p := range r.Permits {
		held := p.State() == core.Held
		some = some || held
		switch {
		case held && err != nil && (!r.Extends || errors.Is(err, core.ErrLost)):
			t.failf("settled: %s is held, and its caller is told %v", p.ID, err)
		case err == nil && r.Pool == nil && p.TrustedUntil() <= s.local(t.now):
			t.failf("settled: %s is not held, and its caller is told that it is", p.ID)
		case err == nil && r.Extends && p.TrustedUntil() < s.askedAt(r)+t.plan.ttl-t.plan.ttl/10:
			t.failf("settled: %s was not extended, and its caller is told that it was", p.ID)
		}
	}
	if err == nil && !some {
		t.failf("settled: a pool is granted nothing of %s", ids(r.Permits))
	}
}

// checkGivenUp: a session holds nothing that its caller has given up.
func (t *trial) checkGivenUp(r *request) {
	for _, p := range r.Permits {
		if p.State() == core.Held && !r.Extends {
			t.failf("settled: %s is held, and its caller has given it up", p.ID)
		}
	}
}

// checkPushed: a session that wants replicas to acknowledge what it holds relies on no push.
func (t *trial) checkPushed(s *session, heldBefore int) {
	if s.joining.replicated && s.core.Held() > heldBefore {
		t.failf("settled: %s relies on a push, and no replica has acknowledged it", s.name)
	}
}

// checkOrder: requests for single permits reach Redis in the order in which they were made, as long
// as nothing goes wrong. r arrives now.
func (t *trial) checkOrder(s *session, r *request) {
	single := func(r *request) bool { return r.Kind == message.Wait && len(r.Permits) == 1 }
	if s.joining.max > 0 || !single(r) || r.trouble < s.trouble {
		return
	}
	for _, earlier := range s.requests {
		if earlier == r {
			return
		}
		if single(earlier) && !earlier.seen && earlier.trouble == s.trouble {
			t.failf("order: %s asks for %s, and passes %s",
				s.name, r.Permits[0].ID, earlier.Permits[0].ID)
		}
	}
}

// checkKnown: a session sends no batch while another one is in flight. It sends none to a Redis
// that has refused the last one, or may have forgotten the session, as it has answered no call sent
// within the last lease. A call comes first.
func (t *trial) checkKnown(s *session) {
	if s.latest != nil && !s.done[s.latest] {
		t.failf("order: %s sends a batch, and another one is in flight", s.name)
	}
	if silent := s.local(t.now) - s.local(s.renewed); silent >= t.plan.ttl {
		t.failf("order: %s sends a batch, and no call was answered for %v", s.name, silent)
	}
	if s.unknown {
		t.failf("order: %s sends a batch, and Redis has refused the last one", s.name)
	}
}

// checkReturned: of the permits that Redis counts for it, a session gives back only what the holder
// has given back. Those in quarantine are dropped by any session that has seen their backends gone. A
// session may be asked to end the backends of its own permits, which an operator has revoked. It
// drops those, too, even if the state is lost meanwhile, and it has re-asserted them.
func (t *trial) checkReturned(s *session, x message.Exchange) {
	for _, id := range slices.Concat(x.Release, idsOf(x.Drop)) {
		p := s.permitOf(id)
		kept := p != nil && (p.State() == core.Held || p.State() == core.Lost && !t.seenGone[id])
		if kept && t.before.counts(id) {
			t.failf("returned: %s gives %s back, and its holder has not", s.name, id)
		}
	}
}

// checkPrompt: when nothing more happens at this moment and no message is on its way, the session
// has said what it wants and releases. It asks again for what waits every RetryInterval, when its
// subscription is new, when a push says so, and when its pool holds fewer permits than before.
// After a fault it may pause: trouble then counts the faults so far, and requests and releases of
// before are excepted. The caller of a release is told how the first try went, by the time that the
// session has no more to say of it.
func (t *trial) checkPrompt(s *session, trouble int) {
	for _, d := range s.dropping {
		if d.trouble >= trouble && s.core.Accounts(d.id) {
			t.failf("prompt: %s has released %s, and does not say so", s.name, d.id)
		}
	}
	for _, d := range s.untold {
		if !s.core.Accounts(d.id) {
			t.failf("settled: %s has released %s, and its caller is never told how that went",
				s.name, d.id)
		}
	}
	most := t.plan.retry + t.plan.retry/8 + t.repeats()
	for _, r := range s.requests {
		switch silent := t.now - r.heard; {
		case r.trouble < trouble || !r.Kind.Waits():
		case !r.seen && s.joining.max == 0:
			t.failf("prompt: %s wants %s, and does not say so", s.name, ids(r.Permits))
		case r.seen && silent > most:
			t.failf("prompt: %s waits for %s, and has not asked for %v", s.name, ids(r.Permits),
				silent)
		case r.seen && r.heard < s.mustAsk:
			t.failf("prompt: %s waits for %s, and has not asked since it subscribed anew, or was "+
				"told to", s.name, ids(r.Permits))
		case r.seen && r.Pool != nil && r.heard < r.Pool.Owner.(*pool).gave:
			t.failf("prompt: %s waits for %s, and has not asked since its pool gave a permit back",
				s.name, ids(r.Permits))
		}
	}
}

// checkEarly: a core that is called before it asks for that does nothing. Otherwise it would not
// ask early enough.
func (t *trial) checkEarly(s *session, wake time.Duration, fx core.Effects) {
	if !reflect.ValueOf(fx).IsZero() {
		t.failf("prompt: %s has something to do at %v, and wants to be called at %v: %+v",
			s.name, s.local(t.now), wake, fx)
	}
}

// checkHeard: no recall is heard twice, or of a state that is lost. e says that n recalls are new to
// a pool; below zero, so many are withdrawn.
func (t *trial) checkHeard(s *session, p *pool, e core.Event, n int) {
	if n != 0 && e.Epoch != s.core.Epoch() {
		t.failf("heard: %s hears of recalls of a state that is lost", shownPool(s, p))
	}
	of := tallied{e.Epoch, e.Name}
	t.toldOf[of] += int64(max(0, n))
	t.toldToKeep[of] += int64(max(0, -n))
	if told, recalled := t.toldOf[of], t.recalled[of]; told > recalled {
		t.failf("heard: %s is told of %d recalls, the last %d of them now, and there were %d",
			shownPool(s, p), told, n, recalled)
	}
	if told, withdrawn := t.toldToKeep[of], t.withdrawn[of]; told > withdrawn {
		t.failf("heard: %s is told of %d recalls that are withdrawn, and there were %d",
			shownPool(s, p), told, withdrawn)
	}
}

// checkOwed: once its pools are told what a session has heard, they owe nothing that was recalled in
// another state than the one that the session knows.
func (t *trial) checkOwed(s *session) {
	for _, p := range s.pools {
		if n := min(p.owed, p.core.Held()); n > 0 && p.owedIn != s.core.Epoch() && len(s.events) == 0 {
			t.failf("heard: %s owes %d that were recalled in a state that is lost",
				shownPool(s, p), n)
		}
	}
}

// knownOfFleet is what a session knows of the fleet.
func (s *session) knownOfFleet(now time.Duration) string {
	c, stats := s.core, s.core.Stats(s.local(now))
	return fmt.Sprintf("epoch %s, capacity %d, paused %v: %v", c.Epoch(), stats.Capacity,
		stats.Paused, c.AtCapacity(s.local(now)))
}

// checkLatest: once a session has heard the answer to a call, the answer to an earlier one changes
// nothing that it knows of the fleet. No answer brings back a state that it knows to be lost.
func (t *trial) checkLatest(s *session, call uint64, known, epoch string) {
	if now := s.core.Epoch(); now != epoch {
		s.past[epoch] = true
		if s.past[now] {
			t.failf("heard: %s takes the epoch %q again, which it knew to be lost", s.name, now)
		}
	}
	if now := s.knownOfFleet(t.now); call < s.applied && now != known {
		t.failf("heard: the answer to call %d of %s is older than that to call %d: it knew\n%s, "+
			"and now\n%s", call, s.name, s.applied, known, now)
	}
}

// checkSaid: a call says which operator's pause was last heard of, and how many sessions there
// were: after a loss of state, a call puts that back. While nothing goes wrong, a session remembers
// no number of sessions for three leases.
func (t *trial) checkSaid(s *session, x message.Renewal) {
	if !s.pauses[x.Pause] {
		t.failf("heard: %s has heard of the pauses %q, and says %q", s.name,
			keysInOrder(s.pauses), x.Pause)
	}
	span := 3 * t.plan.ttl
	if most := t.mostSessions(t.now - span); x.Sessions > most && t.quiet(s) > span &&
		t.now-s.began > span {
		t.failf("heard: %s says that there were %d sessions, and there were at most %d",
			s.name, x.Sessions, most)
	}
}

// checkElsewhere: a session that hears of a state which it does not know says at once what it
// holds.
func (t *trial) checkElsewhere(s *session) {
	if s.elsewhere && max(s.troubleAt, t.stalledUntil) <= s.elsewhereAt {
		t.failf("prompt: %s has heard of another state, and does not say what it holds", s.name)
	}
}

// checkOffer: the answer to an offer tells the pool at once what is recalled.
func (t *trial) checkOffer(s *session, offerer string, recalls message.Tally) {
	tells := func(e core.Event) bool {
		return e.Kind == core.Told && e.Name == offerer && e.Tally == recalls
	}
	if recalls.Recalled > 0 && !slices.ContainsFunc(s.events, tells) {
		t.failf("heard: %s has offered permits, and is not told that they are needed", offerer)
	}
}

// checkNumbers: a session counts its permits, and those of each pool. It reports each pool that
// holds some.
func (t *trial) checkNumbers(s *session) {
	if s.core.Left() {
		return
	}
	held, byPool := 0, make(map[*core.Pool]int)
	for _, p := range s.permits {
		if p.State() == core.Held {
			held++
			byPool[p.Pool]++
		}
	}
	if n := s.core.Held(); n != held {
		t.failf("numbers: %s counts %d permits, and holds %d", s.name, n, held)
	}
	if s.joining.max > 0 && held > s.joining.max {
		t.failf("numbers: %s holds %d permits, its maximum is %d", s.name, held, s.joining.max)
	}
	for _, p := range s.pools {
		n := p.core.Held()
		if n != byPool[&p.core] {
			t.failf("numbers: %s counts %d permits, and holds %d", shownPool(s, p), n,
				byPool[&p.core])
		}
		if n > 0 && !slices.Contains(s.core.Pools(), &p.core) {
			t.failf("numbers: %s holds permits, and its session does not report it",
				shownPool(s, p))
		}
	}
}
