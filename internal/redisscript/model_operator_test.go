package redisscript

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is an operator, who pauses grants, drains the fleet, resumes grants,
// and takes a session's permits back. It has the steps, the oracle for pause.lua and evict.lua, and
// what the specification says of them.

// operatorMayAct reports whether the operator acts now. The operator's scripts know no time. So they
// take a clock that was set for the true one if nobody listens, or if it was set by less than half a
// lease. The operator waits for the next heartbeat then.
func (t *trial) operatorMayAct() bool {
	silent := t.clock() - t.before.num("skew") - t.before.num("last")
	small := 2*silent <= t.before.shortest("lease")
	return t.set == t.lastSet || !small && len(t.place.listeners()) > 0
}

// operate takes a step of the operator.
func (t *trial) operate(s step) {
	if !t.operatorMayAct() {
		return
	}
	ttl := t.plan.ttl
	span := []time.Duration{-1, ttl / 2, ttl, 3 * ttl}[s.n%4]
	switch s.do {
	case "operator pauses":
		t.pauseGrants(span, false, s.m%5 == 0)
	case "drains":
		t.pauseGrants(span, true, s.m%5 == 0)
	case "resumes":
		if s.m%4 == 0 {
			t.countHeld(int64(s.m/4%2) * t.scriptClock())
		} else {
			t.resumeGrants()
		}
	case "evicts", "revokes":
		name := ""
		if p := t.sessions[s.who]; p != nil {
			name = p.name
		}
		if all := byScore(t.before.Permits); len(all) > 0 && (name == "" || s.m%4 == 0) {
			name = sessionOf(all[s.n%len(all)])
		}
		if name != "" {
			t.evict(name, s.do == "revokes", s.m%5 == 0)
		}
	}
}

// pauseGrants pauses grants for a time; below zero, until they are resumed.
func (t *trial) pauseGrants(span time.Duration, drain, doubled bool) {
	run := func() {
		t.place.setTime(t.clock())
		got, err := PauseGrants(context.Background(), t.place, t.keys, 0, span, drain, "op", "why")
		t.say("PauseGrants(%v, drain %v) -> %+v", span, drain, got)
		a := act{name: "PauseGrants", ends: true}
		t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
			o := t.beginOperator(time, 0)
			held := o.pauseFor(span.Milliseconds(), span < 0, drain)
			return o, answer{Counted{held, o.now}, nil}
		})
	}
	if run(); doubled {
		t.twice(run)
	}
}

// resumeGrants ends the operator's pause.
func (t *trial) resumeGrants() {
	t.place.setTime(t.clock())
	got, err := Resume(context.Background(), t.place, t.keys, 0, "op")
	t.say("Resume() -> %+v", got)
	a := act{name: "Resume", served: true, ends: true}
	t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.beginOperator(time, 0)
		held := o.resume()
		return o, answer{Counted{held, o.now}, nil}
	})
}

// countHeld has the script pause look, and change no pause. An operator that looks again and again
// knows the time.
func (t *trial) countHeld(expected int64) {
	t.place.setTime(t.clock())
	got, err := CountHeld(context.Background(), t.place, t.keys, expected)
	t.say("CountHeld(%d) -> %+v", expected, got)
	a := act{name: "CountHeld", served: true}
	t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.beginOperator(time, expected)
		held := o.afterPause(o.drains(o.now))
		return o, answer{Counted{held, o.now}, nil}
	})
}

// evict takes back what a session holds. What is revoked is in quarantine, and its holder may not
// know that yet.
func (t *trial) evict(session string, revoke, doubled bool) {
	run := func() {
		holder := t.named(session)
		for _, id := range t.before.held() {
			if revoke && isOurs(id) && sessionOf(id) == session {
				t.evicted[id], t.revokedIn[id] = true, t.epochNow()
				if holder != nil && holder.subscribed {
					t.evictedAt[id] = t.now
				}
			}
		}
		t.place.setTime(t.clock())
		got, err := Evict(context.Background(), t.place, t.keys, 0, session, revoke, "op", "why")
		t.say("Evict(%s, revoke %v) -> %+v", session, revoke, got)
		a := act{name: "Evict", evicted: session}
		t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
			o := t.beginOperator(time, 0)
			held := o.evict(session, revoke)
			return o, answer{Counted{held, o.now}, nil}
		})
	}
	if run(); doubled {
		t.twice(run)
	}
}

// The oracle.

// operatorPause returns the operator's pause, and whether it is in force.
func (s *state) operatorPause(now int64) (p message.Pause, inForce bool) {
	p, ok := message.ParsePause(s.Meta["pause"])
	return p, ok && p.Until > now
}

func (s *state) pausedByOperator(now int64) bool { _, is := s.operatorPause(now); return is }

// drains reports whether the operator's pause recalls all that is held.
func (s *state) drains(now int64) bool {
	p, inForce := s.operatorPause(now)
	return inForce && p.Drain
}

// beginOperator has the oracle begin a script of the operator's.
func (t *trial) beginOperator(time, expected int64) *oracle {
	o := t.begin(time, expected)
	if expected == 0 {
		o.noticeStep(o.lease, "")
	}
	return o
}

// noticeStep is for a caller that knows no time. If no heartbeat came for long, but others are
// subscribed, the clock was set.
func (o *oracle) noticeStep(shortest int64, own string) {
	others := slices.DeleteFunc(slices.Clone(o.listeners), func(s string) bool { return s == own })
	silent := o.now - o.last
	if o.epoch != "" && o.last > 0 && 2*silent > shortest && len(others) > 0 {
		o.now = o.last
		o.setSkew(o.time - o.now)
	}
}

// pauseFor is the script pause. A pause that is in force goes on from when it was set.
func (o *oracle) pauseFor(millis int64, forever, drain bool) int64 {
	drained := o.drains(o.now)
	since, until := o.now, o.now+millis
	if p, inForce := o.operatorPause(o.now); inForce {
		since = p.Since
	}
	if forever {
		until = message.Forever
	}
	o.Meta["pause"] = fmt.Sprintf(`%d %d %s {"by":"op","reason":"why"}`, since, until, oneIf(drain))
	return o.afterPause(drained)
}

// resume is the script pause that ends a pause.
func (o *oracle) resume() int64 {
	drained := o.drains(o.now)
	delete(o.Meta, "pause")
	return o.afterPause(drained)
}

// afterPause does what the script pause does once the pause is as it is to be. drained: it drained
// before.
func (o *oracle) afterPause(drained bool) (held int64) {
	if drained && !o.drains(o.now) && o.epoch != "" {
		o.withdrawUnpromised()
	}
	o.expireLeases("")
	capacity := o.effectiveCapacity()
	if o.epoch != "" {
		o.movePermits(capacity)
		o.drain(capacity)
	}
	o.end()
	return int64(len(o.Permits))
}

// movePermits grants what is free, and recalls permits for those that wait then.
func (o *oracle) movePermits(capacity int64) {
	if !o.mayGrant() {
		return
	}
	o.grantQueue(capacity, "")
	if len(o.Queue)+len(o.Promises) > 0 && !o.awaitsLook() {
		o.balance(capacity)
	}
}

// promisedBy counts the promises that rest on each pool.
func (s *state) promisedBy() map[string]int64 {
	all := make(map[string]int64)
	for name := range s.Promises {
		all[strings.Fields(name)[1]]++
	}
	return all
}

// withdrawUnpromised withdraws the recalls of a drain that has ended. What waiters count on stays
// recalled.
func (o *oracle) withdrawUnpromised() {
	o.forgetPromises()
	promised := o.promisedBy()
	for _, pool := range keysInOrder(o.Debts) {
		if n := o.Debts[pool] - promised[pool]; n > 0 {
			o.owe(pool, -n)
			o.pushRecalls(pool, 0)
		}
	}
	o.anyOrder = true
}

// recallAll recalls what a session holds, or with "" what all hold. No minimum keeps anything.
func (o *oracle) recallAll(session string) {
	for _, pool := range keysInOrder(o.Held) {
		if n := o.keptBy(pool); n > 0 && (session == "" || sessionOf(pool) == session) {
			o.owe(pool, n)
			o.pushRecalls(pool, 0)
		}
	}
	o.anyOrder = true
}

// restorePause puts back the pause that the session knows, after a loss of state.
func (r *renewal) restorePause() {
	o := r.oracle
	_, paused := o.Meta["pause"]
	if _, ok := message.ParsePause(r.n.Pause); r.lost && !paused && ok {
		o.Meta["pause"] = r.n.Pause
	}
}

// endPause ends a pause whose time is over, and withdraws what it has recalled.
func (o *oracle) endPause() {
	p, inForce := o.operatorPause(o.now)
	if _, paused := o.Meta["pause"]; !paused || inForce {
		return
	}
	delete(o.Meta, "pause")
	if p.Drain {
		o.withdrawUnpromised()
	}
}

// noBackend stands in quarantine for a revoked permit under which no backend is recorded.
const noBackend = "0 0 0"

// evict is the script evict.
func (o *oracle) evict(session string, revoke bool) int64 {
	var ids []string
	for _, id := range byScore(o.Permits) {
		if isOurs(id) && sessionOf(id) == session && !o.isQuarantined(id) {
			ids = append(ids, id)
		}
	}
	switch {
	case revoke && len(ids) > 0:
		o.fence = true
		o.setNum("fence", 1)
		for _, id := range ids {
			o.revokePermit(id)
		}
		o.chooseFencer(session)
		o.push(session, "l")
	case !revoke && o.epoch != "":
		o.recallAll(session)
	}
	o.expireLeases("")
	o.end()
	return int64(len(ids))
}

// revokePermit puts a permit into quarantine until its backend is gone. Where none is recorded, its
// lease goes on to its end.
func (o *oracle) revokePermit(id string) {
	if record, covers := o.Backends[id]; covers && namesBackend(record) {
		o.quarantine(id, record)
		return
	}
	delete(o.Backends, id)
	o.Quarantine[id] = noBackend
	o.uncount(id)
}

// endsInQuarantine lists the permits in quarantine whose backends are to be ended. It forgets the
// revoked permits that are gone.
func (o *oracle) endsInQuarantine() (ids []string) {
	for _, id := range keysInOrder(o.Quarantine) {
		if o.Quarantine[id] != noBackend {
			ids = append(ids, id)
		} else if _, there := o.Permits[id]; !there {
			delete(o.Quarantine, id)
		}
	}
	return ids
}

// The specification.

// checkPaused: while an operator's pause is in force, no script adds a permit that its session does
// not say that it holds. The pause lasts until its end, or until it is resumed. After a loss of
// state the next session that knows of it puts it back. Excepted is a state in which a pause is on
// record: an operator's newer one, or one that another session has put back. If those two differ,
// that session has not heard of the last change yet: a window of a third of a lease (PROTOCOL.md).
func (t *trial) checkPaused(before, after *state, a act) {
	if after.pausedByOperator(a.now) && len(a.granted) > 0 {
		t.failf("paused: %s granted %q, and an operator has paused grants", a.name, a.granted)
	}
	if p, lasts := before.operatorPause(a.now); lasts && !a.ends {
		if now, still := after.operatorPause(a.now); !still || now != p {
			t.failf("paused: %s has changed the pause %q to %q", a.name, before.Meta["pause"],
				after.Meta["pause"])
		}
	}
	restores := &state{Meta: map[string]string{"pause": a.knowsPause}}
	_, another := message.ParsePause(before.Meta["pause"])
	if restores.pausedByOperator(a.now) && !after.pausedByOperator(a.now) && !another {
		t.failf("paused: %s has lost its state, and does not restore the pause %q", a.name,
			a.knowsPause)
	}
}

// checkDrain: in a drain each pool owes all that it holds, as far as Redis counts that. When a drain
// ends, no pool owes more than what is promised, and what is held beyond the capacity. The session
// that sends the script says what its pools owe, and then hears what is withdrawn: see owedThen.
func (t *trial) checkDrain(before, after *state, a act) {
	if after.Meta["epoch"] == "" {
		return
	}
	if after.drains(a.now) && (a.counts && a.name != "Leave" || a.ends || a.name == "CountHeld") {
		for pool, held := range after.Held {
			if debt := after.Debts[pool]; debt < held {
				t.failf("recalls: %s: the fleet is drained, and %s owes %d of %d", a.name, pool,
					debt, held)
			}
		}
	}
	was, drained := message.ParsePause(before.Meta["pause"])
	_, paused := after.Meta["pause"]
	if !drained || !was.Drain || paused || before.Meta["epoch"] != after.Meta["epoch"] {
		return
	}
	if a.ends && was.Until <= a.now {
		return // no heartbeat has noted that its time was over, and what was recalled is owed
	}
	over, promised := max(0, int64(len(after.Permits))-after.num("cap")), after.promisedBy()
	for pool, debt := range after.Debts {
		if a.counts && sessionOf(pool) == a.session {
			debt = owedThen(before, after, pool, a)
		}
		if debt > promised[pool]+over {
			t.failf("recalls: %s: the drain is over, and %s owes %d, of which %d are promised",
				a.name, pool, debt, promised[pool])
		}
	}
}

// owedThen is what a pool of the session that sends a heartbeat owes once it has heard what the
// script recalls and withdraws. It is 0 if the session and Redis did not agree before on what the
// pool holds, owes and has heard: a message was on its way, and the next heartbeat settles that.
func owedThen(before, after *state, pool string, a act) int64 {
	tally := func(s *state) message.Tally {
		return message.Tally{Recalled: s.Recalls["+"+pool], Withdrawn: s.Recalls["-"+pool]}
	}
	was, is := tally(before), tally(after)
	for _, r := range a.reports {
		if r.Name == pool && a.epoch == before.Meta["epoch"] && r.Heard == was &&
			int64(r.Held) == before.Held[pool] && int64(r.Owed) == before.Debts[pool] {
			return int64(r.Owed) + is.Recalled - was.Recalled - (is.Withdrawn - was.Withdrawn)
		}
	}
	return 0
}

// checkEvicted: what an operator revokes stays counted, and counts for its session no more.
func (t *trial) checkEvicted(before, after *state, a act) {
	if a.name != "Evict" || t.damaged {
		return
	}
	for _, id := range before.held() {
		if sessionOf(id) == a.evicted && t.evicted[id] && before.Permits[id] > a.now &&
			!after.inQuarantine(id) {
			t.failf("evicted: %s was revoked, and is not in quarantine", id)
		}
	}
	for pool, held := range after.Held {
		_, miscounted := t.miscounted[pool]
		if sessionOf(pool) == a.evicted && after.Debts[pool] < held &&
			after.Meta["epoch"] != "" && !miscounted {
			t.failf("evicted: %s owes %d of %d", pool, after.Debts[pool], held)
		}
	}
}

// forgetRevoked ends the exception for the permits of which a reply says that they are not held any
// more: from now on their session must not trust them.
func (t *trial) forgetRevoked(missing []string) {
	for _, list := range []map[string]bool{t.revoked, t.evicted} {
		maps.DeleteFunc(list, func(id string, _ bool) bool { return slices.Contains(missing, id) })
	}
}

// resumeAtEnd resumes grants. A late call can restore a pause after a loss of state: then the
// operator finds it again.
func (t *trial) resumeAtEnd() {
	if _, paused := t.before.Meta["pause"]; paused {
		t.resumeGrants()
	}
}
