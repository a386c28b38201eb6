package core

import (
	"slices"
	"testing"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Redis granted a permit, then forgot everything. The session first hears, by a call, of the new
// state, then of the grant. That grant is of the lost state, and the new one may grant the same
// permit to another session.
func TestAGrantFromBeforeTheLossIsAskedForAgain(t *testing.T) {
	for name, grant := range map[string]func(s *stage, b *Batch, id string){
		"reply": func(s *stage, b *Batch, id string) {
			s.findsAnotherState()
			s.answer(b, all)
		},
		"push": func(s *stage, b *Batch, id string) {
			s.answer(b, queued)
			s.findsAnotherState()
			s.pushFrom("e", id)
		},
		"push of a state not heard of yet": func(s *stage, b *Batch, id string) {
			s.answer(b, queued)
			s.pushFrom("another", id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			p, r := s.wantsOne(message.Wait)
			if grant(s, s.batch(), p.ID); s.holds(p) || r.settled {
				t.Error("the session relies on a grant that Redis forgot")
			}
			b := s.batch()
			if !slices.Equal(b.X.Waits, []string{p.ID}) || b.X.Epoch != s.state {
				t.Errorf("sent %+v, want the request again", b.X)
			}
			if s.answer(b, all); !s.holds(p) || !r.settled {
				t.Error("the permit is not granted anew")
			}
		})
	}
}

// pushFrom pushes a grant of the state with that epoch.
func (s *stage) pushFrom(epoch, id string) {
	s.tb.Helper()
	s.Pushed(s.now, message.Push{
		Kind: message.PushGrant, Epoch: epoch, Now: redis(s.now), IDs: []string{id}})
	s.take()
}

// findsAnotherState has a call find that Redis forgot everything.
func (s *stage) findsAnotherState() {
	s.tb.Helper()
	k := s.call()
	s.state = "another"
	s.renew(k)
}

// Redis forgets everything while a call is in flight, and an earlier grant arrives. The call
// re-asserts all permits that it names, but not that one. The session accepts the new state only
// once another call has re-asserted the rest. Until then it asks for nothing, so nothing can be
// granted twice.
func TestAGrantThatTheCallMissedIsReasserted(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.acquire()
	q, _ := s.wantsOne(message.Wait)
	b := s.batch()
	k := s.call()
	s.answer(b, all)
	s.state = "another"
	s.seen = Effects{}
	s.renew(k)
	if s.Epoch() != "e" || !s.seen.Heartbeat {
		t.Errorf("epoch %q, another call: %v; want a call that names both permits first",
			s.Epoch(), s.seen.Heartbeat)
	}
	next := s.call()
	got := slices.Sorted(slices.Values(next.X.Permits))
	if want := []string{p.ID, q.ID}; !slices.Equal(got, want) {
		t.Errorf("the next call names %q, want %q", got, want)
	}
	if next.X.Epoch != "e" {
		t.Errorf("the next call has the epoch %q, want the former one, so that it re-asserts",
			next.X.Epoch)
	}
	if s.renew(next); s.Epoch() != "another" || !s.holds(p) || !s.holds(q) {
		t.Errorf("after the second call: epoch %q, held %v and %v",
			s.Epoch(), s.holds(p), s.holds(q))
	}
}

// A session that has found the state lost calls again at once. Only a call that knows the new state
// says that Redis counts all that the session trusts, and until then grants stay paused. One such
// call suffices.
func TestASessionSaysAtOnceThatItKnowsTheNewState(t *testing.T) {
	for name, crosses := range map[string]bool{
		"all named": false, "a grant crosses the call that finds the loss": true,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{Capacity: 2})
			held := []string{s.acquire().ID}
			var b *Batch
			if crosses {
				p, _ := s.wantsOne(message.Wait)
				held, b = append(held, p.ID), s.batch()
			}
			k := s.call()
			if crosses {
				s.answer(b, all)
			}
			s.state = "another"
			s.seen = Effects{}
			s.renew(k)
			if crosses {
				s.renew(s.call()) // it names the rest, and finds the loss as well
			}
			if !s.seen.Heartbeat || s.Epoch() != "another" {
				t.Errorf("calls again: %v, in epoch %q; want a call at once, in the new epoch",
					s.seen.Heartbeat, s.Epoch())
			}
			last := s.call()
			if got := slices.Sorted(slices.Values(last.X.Permits)); last.X.Epoch != "another" ||
				!slices.Equal(got, held) {
				t.Errorf("that call knows %q and names %q, want the new epoch and %q",
					last.X.Epoch, got, held)
			}
			s.seen = Effects{}
			if s.renew(last); s.seen.Heartbeat {
				t.Error("the session calls once more")
			}
		})
	}
}

// Calls reach two servers in turn, neither of which knows the state of the other: something between
// the session and Redis is set up wrong. The session does not ask them as fast as they answer.
func TestTwoStatesInTurnAreNoStorm(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	calls := 0
	s.beat = func(k *Call) {
		if calls++; calls > 100 {
			return
		}
		s.state = map[string]string{"e": "another", "another": "e"}[k.X.Epoch]
		s.renew(k)
	}
	if s.pass(ttl); calls < 3 || calls > 8 {
		t.Errorf("%d calls in a lease, want 3 to 8", calls)
	}
	if !s.holds(p) {
		t.Error("the permit is lost")
	}
}

// The state is lost twice within a lease. The session still tells how many sessions there were before:
// in the state between, the others were not back yet. Its number is right again a lease later.
func TestTwoLossesForgetNoSession(t *testing.T) {
	s := start(t, Config{})
	s.replied(s.call(), message.Renewed{Sessions: 2})
	k := s.call()
	s.state = "another"
	s.replied(k, message.Renewed{Sessions: 1})
	last := s.now
	s.pass(ttl / 3)
	k = s.call()
	if k.X.Sessions != 2 {
		t.Errorf("the session says that there were %d sessions, want 2", k.X.Sessions)
	}
	s.replied(k, message.Renewed{Sessions: 1})
	for s.now < last+ttl {
		s.pass(ttl / 3)
		s.replied(s.call(), message.Renewed{Sessions: 1})
	}
	if k := s.call(); k.X.Sessions != 1 {
		t.Errorf("after a lease it says %d, want 1", k.X.Sessions)
	}
}

// The state is lost. The session repeats its waiting requests, because the new state knows nothing
// of them.
func TestWaitersSurviveALoss(t *testing.T) {
	s := start(t, Config{})
	p, _ := s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	s.findsAnotherState()
	b := s.batch()
	if !slices.Equal(b.X.Waits, []string{p.ID}) || b.X.Epoch != "another" {
		t.Errorf("sent %+v, want the request", b.X)
	}
}

// Grants are paused after a loss of state. The core sends waiting requests again when the pause is
// over.
func TestWaitersAskWhenGrantsAreNotPausedAnyMore(t *testing.T) {
	s := start(t, Config{RetryInterval: ttl})
	s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	s.retryAt = 0 // the interval is far off
	pause := ttl / 5
	s.replied(s.call(), message.Renewed{PausedUntil: redis(s.now + pause)})
	s.seen = Effects{}
	if s.pass(pause); s.seen.Flush {
		t.Error("the request is repeated while grants are paused")
	}
	if s.pass(pause / 4); !s.seen.Flush {
		t.Error("the request is not repeated when grants begin again")
	}
}

// A new state counts recalls anew. A pool owes nothing to the old state, and a late push of the old
// state recalls nothing.
func TestRecallsAreCountedAnewAfterALoss(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p := s.pool()
	p.gets(3)
	s.recall(p, 2)
	if p.owed != 2 {
		t.Fatalf("bug in the test: the pool owes %d, want 2", p.owed)
	}
	s.tallies[p.name] = message.Tally{}
	s.findsAnotherState()
	if p.owed != 0 {
		t.Errorf("the pool owes %d to a state that is lost", p.owed)
	}
	old := message.Push{Kind: message.PushRecall, Epoch: "e", Pool: p.name}
	old.Tally.Recalled = 3
	s.Pushed(s.now, old)
	if s.take(); p.owed != 0 {
		t.Errorf("the pool owes %d because of a push of the lost state", p.owed)
	}
	if s.recall(p, 1); p.owed != 1 {
		t.Errorf("the pool owes %d, want the 1 of the new state", p.owed)
	}
}

// An operator deletes the counts of recalls. A smaller count is no reason to recall a permit.
func TestDeletedCountsRecallNothing(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p := s.pool()
	p.gets(3)
	s.recall(p, 2)
	s.tallies[p.name] = message.Tally{}
	s.renew(s.call())
	if p.owed != 0 {
		t.Errorf("the pool owes %d, although Redis counts none", p.owed)
	}
	if s.recall(p, 1); p.owed != 1 {
		t.Errorf("the pool owes %d, want the 1 that is new", p.owed)
	}
}
