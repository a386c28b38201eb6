package redisscript

import (
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The scenarios in which the state is lost while messages are on their way.

// cross has what one state told a session arrive when the session knows the next state already. Or
// the call that finds the next state does not name what the session was granted meanwhile, or puts
// back what it has released. Or the state, or a part of it, is lost twice, or while a process is
// stopped.
func (t *trial) cross(s *session, st step) {
	roundTrip := t.plan.roundTrip
	if paused := t.before.num("gate") - t.scriptClock(); paused > 0 { // by the last loss
		t.until(t.now + min(time.Duration(paused+1)*time.Millisecond, t.plan.ttl))
		if s.dead || s.paused || s.cut || s.leaves {
			return
		}
	}
	late := roundTrip + []time.Duration{
		20 * time.Millisecond, 100 * time.Millisecond, t.plan.ttl / 3,
	}[st.n%3]
	lateCall := func() { // it is made now, and executed later
		s.force("call", luck{fate: slow, there: late})
		t.beat(s)
		t.until(t.now)
	}
	findsNext := true // by a call of its own
	switch st.m % 13 {
	case 0:
		t.makeRoom(s)
		s.force("batch", luck{fate: slow, back: late})
		if held := s.owned(nil, core.Held); len(held) > 0 {
			t.release(s, held[0])
		}
		t.want(s, message.Wait, 0, s.plain(1)...)
	case 1:
		held := s.owned(nil, core.Held)
		if st.n%2 == 0 && len(held) > 0 && len(t.before.Permits) > 1 {
			t.revoke(held[0].ID, step{m: 1}) // the call misses it, and the next state has it again
			t.changed()
		}
		s.force("call", luck{fate: slow, back: late})
		t.beat(s)
	case 2:
		if !t.makeWait(s) {
			return
		}
		s.force("push", luck{fate: slow, back: late})
		t.releaseBeside(s)
	case 3:
		lateCall()
		if held := s.owned(nil, core.Held); len(held) > 0 {
			t.release(s, held[0])
		}
	case 4:
		t.makeRoom(s)
		lateCall()
		t.want(s, message.Wait, 0, s.plain(1)...)
		findsNext = false
	case 5:
		if t.makeRecallable(s) == nil {
			return
		}
		s.force("push", luck{fate: slow, back: late})
		t.evict(s.name, false, false)
	case 6:
		t.startTwice(s)
		return
	case 7:
		t.freezeTwice(s, roundTrip)
		return
	case 8: // the later of two calls meets this state, and the earlier one the next
		s.force("call", luck{fate: slow, there: late}, luck{fate: slow, back: 2 * late})
		for range 2 {
			t.beat(s)
			t.until(t.now)
		}
		findsNext = false
	case 9:
		t.echo(s, roundTrip, late)
		return
	case 10:
		t.freezeUnsaid(s, late)
		return
	case 11:
		t.countAnew(s, roundTrip)
		return
	case 12:
		t.overtake(s, roundTrip)
		return
	}
	t.until(t.now + roundTrip)
	t.outside(step{do: "flush"})
	if findsNext {
		t.beat(s)
		t.until(t.now + roundTrip + late) // until all has arrived
	}
}

// startTwice has a call start a state that others join, and its connection break. The call is sent
// again, and starts the next state, as that one is lost meanwhile.
func (t *trial) startTwice(s *session) {
	roundTrip, others := t.plan.roundTrip, t.all()
	t.outside(step{do: "flush"})
	s.force("call", luck{fate: breaks, back: 2*roundTrip + 10*time.Millisecond})
	t.beat(s)
	t.until(t.now + roundTrip)
	for _, other := range others {
		if other != s && !other.paused && !other.leaves {
			t.beat(other)
		}
	}
	t.until(t.now + roundTrip)
	t.outside(step{do: "flush"})
	t.until(t.now + roundTrip + 10*time.Millisecond)
}

// freezeTwice has a process stop that holds permits. The state is lost, and lost once more when
// nobody but s has come back. Then s wants all that there is.
func (t *trial) freezeTwice(s *session, roundTrip time.Duration) {
	frozen := t.holderBeside(s)
	if frozen == nil || t.plan.fence && !t.plan.windows || roundTrip > t.plan.ttl/20 {
		return
	}
	t.beat(frozen)
	t.beat(s) // which has to know of the other one: it says after a loss how many there were
	t.until(t.now + roundTrip)
	t.pause(frozen)
	for range 2 {
		t.outside(step{do: "flush"})
		t.beat(s)
		t.until(t.now + roundTrip)
	}
	for range t.plan.capacity {
		t.want(s, message.Wait, 0, s.plain(1)...)
	}
	t.until(t.now + t.plan.ttl/2) // by then grants would go on, if nobody was missed
	t.beat(s)
	t.until(t.now + t.plan.ttl/10)
	t.resume(frozen)
}

// freezeUnsaid has a process stop that was granted a permit after it made a call. The state is lost,
// and the call is executed only then: it names all that the process held before. All others come
// back, and one of them wants all that there is.
func (t *trial) freezeUnsaid(s *session, late time.Duration) {
	roundTrip := t.plan.roundTrip
	if t.plan.fence && !t.plan.windows || roundTrip > t.plan.ttl/20 {
		return
	}
	others := func(do func(other *session)) {
		for _, other := range t.all() {
			if other != s && !other.paused && !other.cut && !other.leaves {
				do(other)
			}
		}
	}
	t.beat(s)
	others(t.beat) // each has to know of all others: it says after a loss how many there were
	t.until(t.now + roundTrip)
	t.makeRoom(s)
	s.force("call", luck{fate: slow, there: late})
	t.beat(s)
	t.until(t.now)
	t.want(s, message.Wait, 0, s.plain(1)...)
	t.until(t.now + roundTrip)
	t.outside(step{do: "flush"})
	t.pause(s)
	t.until(t.now + late)
	others(t.beat)
	t.until(t.now + roundTrip)
	wants := true
	others(func(other *session) {
		for range t.plan.capacity {
			if wants {
				t.want(other, message.Wait, 0, other.plain(1)...)
			}
		}
		wants = false
	})
	t.until(t.now + t.plan.ttl/2) // by then grants go on, if nobody is missed
	others(t.beat)
	t.until(t.now + t.plan.ttl/10)
	t.resume(s)
}

// echo has the push of a grant be heard again when the permit is lost, and not given back.
func (t *trial) echo(s *session, roundTrip, late time.Duration) {
	if !t.makeWait(s) {
		return
	}
	had := s.owned(nil, core.Held)
	s.force("push", luck{fate: echoed, later: late})
	t.releaseBeside(s)
	t.until(t.now + roundTrip)
	for _, p := range s.owned(nil, core.Held) {
		if !slices.Contains(had, p) && len(t.before.Permits) > 1 {
			t.revoke(p.ID, step{m: 1})
			t.changed()
			t.beat(s)
			t.until(t.now + roundTrip)
			return
		}
	}
}

// hasRecalled reports whether a permit was ever recalled from p, which holds one.
func (t *trial) hasRecalled(s *session, p *pool) bool {
	held := s.ofPool(p, core.Held)
	return len(held) > 0 && t.before.Recalls["+"+poolOf(held[0].ID)] > 0
}

// countAnew has the tallies of recalls be deleted, and two calls find that. A pool hears of another
// recall before the second answer comes.
func (t *trial) countAnew(s *session, roundTrip time.Duration) {
	soon := roundTrip + 20*time.Millisecond // before a call is hedged
	p := t.makeRecallable(s)
	if p != nil && !t.hasRecalled(s, p) {
		t.evict(s.name, false, false)
		t.until(t.now + roundTrip + maxLateness)
		t.pay(s, p)
		t.until(t.now + roundTrip)
		p = t.makeRecallable(s)
	}
	if p == nil || !t.hasRecalled(s, p) {
		return
	}
	t.deleteKey(t.keys.all[13]) // the recalls
	t.changed()
	s.force("call", luck{fate: slow, back: soon}, luck{fate: slow, back: 2 * soon})
	for range 2 {
		t.beat(s)
		t.until(t.now)
	}
	t.until(t.now + roundTrip + soon)
	t.evict(s.name, false, false)
	t.until(t.now + roundTrip + soon)
	t.beat(s)
	t.until(t.now + roundTrip)
}

// overtake has the push of a recall be heard before the answer that tells of its state. The pool is
// told of both later.
func (t *trial) overtake(s *session, roundTrip time.Duration) {
	if t.makeRecallable(s) == nil {
		return
	}
	soon := roundTrip + 20*time.Millisecond // before a call is hedged
	t.outside(step{do: "flush"})
	s.force("call", luck{fate: slow, back: soon})
	t.beat(s)
	t.until(t.now + roundTrip/2)
	if !t.operatorMayAct() {
		return
	}
	s.force("told", luck{there: soon + roundTrip})
	t.evict(s.name, false, false)
	t.until(t.now + soon + 2*roundTrip + maxLateness)
	t.beat(s)
	t.until(t.now + roundTrip)
}
