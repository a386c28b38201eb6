package core

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Calls are answered in another order than they were sent in, and Redis executes them in either
// order. For the figures of the fleet the later call counts. A permit is lost if the call that
// Redis executed last misses it.
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
				t.Errorf("held is %v, want the opposite", s.holds(p))
			}
			if !c.lost && p.TrustedUntil() != trusted {
				t.Error("the older reply has changed the trust")
			}
			if s.capacity != 7 {
				t.Errorf("the capacity is %d by the older reply, want 7", s.capacity)
			}
		})
	}
}

// twoCalls is a session with two calls in flight, the second sent half a second after the first.
// Both name a permit.
func twoCalls(t *testing.T) (s *stage, p *Permit, first, second *Call) {
	t.Helper()
	s = start(t, Config{Capacity: 2})
	p = s.acquire()
	first = s.call()
	s.pass(time.Second / 2)
	return s, p, first, s.call()
}

// The later call finds the state lost, and re-asserts the permit. Redis executed the earlier call
// before that, and missed the permit: that answer is of a state that is gone.
func TestReplyOfALostStateLosesNothing(t *testing.T) {
	s, p, first, second := twoCalls(t)
	s.replied(second, message.Renewed{Epoch: "another"})
	s.replied(first, message.Renewed{Epoch: "e", Missing: []string{p.ID}})
	if !s.holds(p) || s.Epoch() != "another" {
		t.Errorf("held is %v in epoch %q, want the permit held in the new one",
			s.holds(p), s.Epoch())
	}
}

// A call finds the state lost, and re-asserts the permits that it names. One of them was released
// while the call was in flight, and the release reached Redis first. So the core releases it once
// more, even if a later call was answered earlier.
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
				t.Errorf("the batch drops %q, want the permit that the first call re-asserted", got)
			}
			if got := s.call().X.Permits; len(got) != 0 {
				t.Errorf("the next call names %q, want no permit", got)
			}
		})
	}
}

// A call reports a permit of a pool, and the pool is closed. A later call reports that it holds
// nothing. If the pool left with the answer to the later call, the first one could make Redis count
// its permit again, and nobody would ever correct that. So the pool stays until a call that was
// made after the end of the first one reports it as empty.
func TestPoolStaysWhileACallReportsItsPermit(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.gets(1)
	first := s.call()
	p.returns()
	s.ClosePool(s.now, &p.Pool)
	s.renew(s.call())
	if len(s.Pools()) != 1 {
		t.Fatal("the pool has left while a call that reports its permit is in flight")
	}
	s.renew(first)
	last := s.call()
	if len(last.X.Pools) != 1 || last.X.Pools[0].Held != 0 {
		t.Errorf("the last call reports %+v, want the pool with no permit", last.X.Pools)
	}
	if s.renew(last); len(s.Pools()) != 0 {
		t.Error("the pool is still there")
	}
}

// Redis may execute a call that failed here, once it wakes up. So pools stay for two leases.
func TestPoolStaysWhileAFailedCallMayBeExecuted(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	s.beat = s.renew
	p := s.pool()
	p.gets(1)
	k := s.call()
	p.returns()
	s.CallFailed(s.now, k, errors.New("connection reset"))
	if s.pass(2*ttl - 1); len(s.Pools()) != 1 {
		t.Fatal("the pool has left, although Redis may still execute the call that names it")
	}
	if s.pass(ttl); len(s.Pools()) != 0 {
		t.Error("the pool is still there")
	}
}

// Another call has found a new state meanwhile. This call neither knew that state nor found it.
// Only a further call can tell which of the two is current.
func TestReplyOfAThirdStateAsksAgain(t *testing.T) {
	s, p, first, second := twoCalls(t)
	s.replied(first, message.Renewed{Epoch: "another"})
	trusted := p.TrustedUntil()
	s.seen = Effects{}
	s.replied(second, message.Renewed{Epoch: "a third", Missing: []string{p.ID}})
	if !s.holds(p) || p.TrustedUntil() != trusted || s.Epoch() != "another" {
		t.Errorf("held is %v in epoch %q: the session trusts what no call has confirmed",
			s.holds(p), s.Epoch())
	}
	if !s.seen.Heartbeat {
		t.Error("no further call is made")
	}
}

// Redis answers a call, then nothing more. The failure of an older call adds nothing to a later
// reply.
func TestFailureOfAnOlderCallIsNoNews(t *testing.T) {
	s, p, first, second := twoCalls(t)
	s.renew(second)
	s.CallFailed(s.now, first, errors.New("connection reset"))
	s.take()
	if s.Down() != nil || !s.holds(p) {
		t.Errorf("Down is %v, held is %v; want Redis up, and the permit held", s.Down(), s.holds(p))
	}
}
