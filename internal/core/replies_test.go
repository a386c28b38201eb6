package core

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Calls are answered in another order than they were sent in, and Redis executes them in either.
// The later call has the last word on the fleet. A permit is lost if the call that Redis executed
// last misses it.
func TestRepliesInAnotherOrder(t *testing.T) {
	for name, c := range map[string]struct {
		firstAt, secondAt         int64 // when Redis executes them
		firstMisses, secondMisses bool
		lost                      bool
	}{
		"both confirm":                         {10, 20, false, false, false},
		"missed first, confirmed later":        {10, 20, true, false, false},
		"confirmed first, missed later":        {10, 20, false, true, true},
		"executed in another order, too":       {20, 10, true, false, true},
		"executed in another order, confirmed": {20, 10, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, p, first, second := twoCalls(t)
			reply := func(at, capacity int64, misses bool) message.Renewed {
				got := message.Renewed{Now: redis(s.now) + at, Capacity: capacity}
				if misses {
					got.Missing = []string{p.ID}
				}
				return got
			}
			s.replied(second, reply(c.secondAt, 7, c.secondMisses))
			trusted := p.TrustedUntil()
			s.replied(first, reply(c.firstAt, 5, c.firstMisses))
			if s.holds(p) == c.lost {
				t.Errorf("held: %v", s.holds(p))
			}
			if !c.lost && p.TrustedUntil() != trusted {
				t.Error("the older reply has changed what is trusted")
			}
			if s.capacity != 7 {
				t.Errorf("capacity %d: the older reply has the last word", s.capacity)
			}
		})
	}
}

// twoCalls is a session with two calls on their way, the second half a second after the first. Both
// name a permit.
func twoCalls(t *testing.T) (s *stage, p *Permit, first, second *Call) {
	t.Helper()
	s = start(t, Config{Capacity: 2})
	p = s.acquire()
	first = s.call()
	s.pass(time.Second / 2)
	return s, p, first, s.call()
}

// The later call finds the state lost, and puts back what is held. The earlier one was executed
// before, and missed the permit: it speaks of a state that is gone.
func TestReplyOfALostStateLosesNothing(t *testing.T) {
	s, p, first, second := twoCalls(t)
	s.replied(second, message.Renewed{Epoch: "another"})
	s.replied(first, message.Renewed{Epoch: "e", Missing: []string{p.ID}})
	if !s.holds(p) || s.Epoch() != "another" {
		t.Errorf("held %v, epoch %q", s.holds(p), s.Epoch())
	}
}

// A call finds the state lost, and puts back what it names. One of those was released while the
// call was on its way, and Redis was told before the call came. So it is released once more, also
// if a later call was answered earlier.
func TestReleaseThatACallUndoesIsRepeated(t *testing.T) {
	for name, answers := range map[string]func(s *stage, first, second *Call){
		"the only reply": func(s *stage, first, second *Call) {
			s.CallFailed(s.now, second, errSilent)
			s.replied(first, message.Renewed{Epoch: "another"})
		},
		"after the reply of a later call": func(s *stage, first, second *Call) {
			s.replied(second, message.Renewed{Epoch: "another"})
			s.replied(first, message.Renewed{Epoch: "another"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{Capacity: 2})
			p := s.acquire()
			first := s.call()
			s.release(p)
			s.answer(s.batch(), all)
			second := s.call()
			answers(s, first, second)
			s.take()
			if got := s.batch().X.Drop; !slices.Equal(named(got), []string{p.ID}) {
				t.Errorf("dropped %q, want what the first call has put back", got)
			}
			if got := s.call().X.Permits; len(got) != 0 {
				t.Errorf("the next call names %q", got)
			}
		})
	}
}

// A pool holds a permit, a call says so, and the pool is closed. A later call says that it holds
// nothing. If the pool left with the answer to that, the first call would have Redis count its
// permit again, and nobody would ever take that back. So the pool stays until a call says so that
// was made after the first had ended.
func TestPoolStaysWhileACallSaysThatItHolds(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.gets(1)
	first := s.call()
	p.returns()
	s.ClosePool(s.now, &p.Pool)
	s.renew(s.call())
	if len(s.Pools()) != 1 {
		t.Fatal("the pool has left while a call is on its way that says it holds a permit")
	}
	s.renew(first)
	last := s.call()
	if len(last.X.Pools) != 1 || last.X.Pools[0].Held != 0 {
		t.Errorf("the last call says %+v, want the pool named as one that holds nothing", last.X.Pools)
	}
	if s.renew(last); len(s.Pools()) != 0 {
		t.Error("the pool is still there")
	}
}

// A call that failed here may still be executed, when Redis wakes up: pools stay for two leases.
func TestPoolStaysWhileAFailedCallMayBeExecuted(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	s.beat = s.renew
	p := s.pool()
	p.gets(1)
	k := s.call()
	p.returns()
	s.CallFailed(s.now, k, errors.New("connection reset"))
	if s.pass(2*ttl - 1); len(s.Pools()) != 1 {
		t.Fatal("the pool has left although the call that names it may be executed yet")
	}
	if s.pass(ttl); len(s.Pools()) != 0 {
		t.Error("the pool is still there")
	}
}

// Another call has found a new state meanwhile, and this one neither knew it nor met it. Only
// another call can tell which of the two states is there now.
func TestReplyOfAThirdStateAsksAgain(t *testing.T) {
	s, p, first, second := twoCalls(t)
	s.replied(first, message.Renewed{Epoch: "another"})
	trusted := p.TrustedUntil()
	s.seen = Effects{}
	s.replied(second, message.Renewed{Epoch: "a third", Missing: []string{p.ID}})
	if !s.holds(p) || p.TrustedUntil() != trusted || s.Epoch() != "another" {
		t.Errorf("held %v, epoch %q: believed what no call has confirmed", s.holds(p), s.Epoch())
	}
	if !s.seen.Heartbeat {
		t.Error("no call is sent that can tell")
	}
}

// Redis answers a call, then nothing more. The failure of an older call says nothing that a later
// reply did not say.
func TestFailureOfAnOlderCallIsNoNews(t *testing.T) {
	s, p, first, second := twoCalls(t)
	s.renew(second)
	s.CallFailed(s.now, first, errors.New("connection reset"))
	s.take()
	if s.Down() != nil || !s.holds(p) {
		t.Errorf("down: %v, held: %v", s.Down(), s.holds(p))
	}
}
