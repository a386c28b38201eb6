package core

import (
	"testing"

	"github.com/passbuddy/passbuddy/internal/message"
)

// In whatever order tallies come, the pool owes what was recalled and not withdrawn.
func TestTalliesInAnyOrder(t *testing.T) {
	tally := func(recalled, withdrawn int64) message.Tally {
		return message.Tally{Recalled: recalled, Withdrawn: withdrawn}
	}
	type said struct {
		epoch   string
		tally   message.Tally
		offered bool // it answers an offer
	}
	push := func(recalled, withdrawn int64) said { return said{"e", tally(recalled, withdrawn), false} }
	for name, c := range map[string]struct {
		said []said
		owes int
	}{
		"told twice": {[]said{push(1, 0), push(1, 0), push(2, 0), push(2, 0)}, 2},
		"late":       {[]said{push(3, 0), push(1, 0), push(2, 0)}, 3},
		"one lost":   {[]said{push(1, 0), push(3, 1)}, 2},
		"withdrawn":  {[]said{push(2, 0), push(2, 2)}, 0},
		"the answer to an offer, before its pushes": {
			[]said{push(2, 0), {"e", tally(3, 2), true}, push(2, 1), push(2, 2), push(3, 2)}, 1},
		"of a state that is lost": {
			[]said{push(1, 0), {"old", tally(5700, 5600), false}, {"old", tally(99, 0), true}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{Capacity: 3})
			p := s.pool()
			for _, told := range c.said {
				s.deliver(Event{Kind: Told, Pool: &p.Pool, Name: p.name, Epoch: told.epoch, Tally: told.tally,
					Offered: told.offered})
			}
			if p.owed != c.owes {
				t.Errorf("the pool owes %d, want %d", p.owed, c.owes)
			}
		})
	}
}

// A tally comes by a push, by the answer to an offer, and by the answer to a call. It counts once.
func TestATallyCountsOnceWhicheverWayItComes(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p := s.pool()
	p.gets(3)
	s.Offer(s.now, &p.Pool, 2)
	b := s.batch()
	k := s.call()
	s.recall(p, 1)
	s.answer(b, message.Exchanged{Promised: s.tallies[p.name]})
	s.renew(k)
	s.renew(s.call())
	if p.owed != 1 {
		t.Errorf("the pool owes %d, want the 1 that was recalled; it was told %q", p.owed, p.told)
	}
}

// The push of a recall is lost. The answer to the next call tells the pool.
func TestALostRecallIsToldByTheNextCall(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p := s.pool()
	p.gets(3)
	s.tallies[p.name] = message.Tally{Recalled: 2, Withdrawn: 1} // without the pushes of it
	s.renew(s.call())
	if p.owed != 1 {
		t.Errorf("the pool owes %d, want the 1 that was recalled; it was told %q", p.owed, p.told)
	}
}

// A call reports how many recalls a pool has heard of, and how many of those it still owes. Redis
// counts the rest as given back.
func TestACallReportsWhatIsOwed(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p := s.pool()
	p.gets(2)
	s.recall(p, 1)
	want := message.PoolReport{Name: p.name, Held: 2, Owed: 1, Heard: message.Tally{Recalled: 1}}
	if got := s.call().X.Pools; len(got) != 1 || got[0] != want {
		t.Errorf("the call reports %+v, want %+v", got, want)
	}
	p.owed = 5 // more than it holds: recalls that came before their grants
	want.Owed = 2
	if got := s.call().X.Pools; len(got) != 1 || got[0] != want {
		t.Errorf("the call reports %+v, want %+v", got, want)
	}
}

// A push of the next state overtakes the reply in which the session finds that state. The reply has
// the pool forget what it owes. The pool hears of the recall once, by the call after it.
func TestARecallOfTheNextStateIsHeardOnce(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p := s.pool()
	p.gets(3)
	p.obey = true
	k := s.call()
	tally := message.Tally{Recalled: 1}
	s.Pushed(s.now, message.Push{Kind: message.PushRecall, Epoch: "another", Pool: p.name, Tally: tally})
	s.replied(k, message.Renewed{Epoch: "another", Recalls: make([]message.Tally, len(k.X.Pools))})
	s.state, s.tallies[p.name] = "another", tally
	s.renew(s.call())
	if n := p.times("recall"); n != 1 || len(p.permits) != 2 {
		t.Errorf("%d recalls, and %d permits are left of 3; told %q", n, len(p.permits), p.told)
	}
}

// A call finds the next state before the session has put back all that it holds. Then a push of the
// state before comes, and is not news.
func TestARecallOfTheStateBeforeIsHeardOnce(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p := s.pool()
	p.gets(2)
	s.recall(p, 2)
	k := s.call()
	other := s.NewPermit()
	s.hold(s.now, other, s.now+ttl-margin) // granted while the call was on its way
	s.state = "another"
	s.replied(k, message.Renewed{Recalls: make([]message.Tally, len(k.X.Pools))})
	s.Pushed(s.now, message.Push{
		Kind: message.PushRecall, Epoch: "e", Pool: p.name, Tally: message.Tally{Recalled: 2},
	})
	s.take()
	if n := p.times("recall"); n != 1 {
		t.Errorf("told of it %d times: %q", n, p.told)
	}
	s.tallies[p.name] = message.Tally{}
	if s.renew(s.call()); p.owed != 0 {
		t.Errorf("owes %d to a state that is lost", p.owed)
	}
}
