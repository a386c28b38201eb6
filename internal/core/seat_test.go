package core

import (
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Nothing stays of a pool that holds nothing and asks for nothing, whether anybody closed it or
// not. It comes back with its next request, under any number, and is told what concerns it and
// nothing else.
func TestAPoolThatHoldsNothingLeaves(t *testing.T) {
	s := start(t, Config{Capacity: 4})
	s.beat = s.renew
	a, b := s.pool(), s.pool()
	for round := range 4 { // numbers change hands
		first, second := a, b
		if round%2 == 1 {
			first, second = b, a
		}
		first.gets(1)
		second.gets(3)
		s.pass(2 * withdrawAfter)
		before, others := second.times("recall"), first.times("recall")
		s.recall(second, 1)
		if second.times("recall") != before+1 || first.times("recall") != others {
			t.Errorf("round %d: %d recalls of the pool that is named, %d of the other, want one and none",
				round, second.times("recall")-before, first.times("recall")-others)
		}
		first.returns()
		second.returns()
		first.owed, second.owed = 0, 0
		s.pass(2 * ttl)
		if n := len(s.Pools()); n != 0 {
			t.Errorf("round %d: %d pools that hold nothing have numbers", round, n)
		}
	}
	if s.numbers > 2 {
		t.Errorf("%d numbers were used", s.numbers)
	}
}

// A recall whose push was lost, of a permit that was given back all the same, is not news to the
// pool that has the number next. An offer that was made under that number is not sent for the other
// pool.
func TestANumberComesWithoutDebts(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	s.beat = s.renew
	a := s.pool()
	a.gets(1)
	s.pass(ttl)
	name := a.name
	a.returns()
	s.tallies[name] = message.Tally{Recalled: 1}
	s.wantsOne(message.Wait)
	flight := s.batch()
	s.Offer(s.now, &a.Pool, 1) // waits for the batch in flight
	s.renew(s.call())
	if n := len(s.Pools()); n != 0 {
		t.Fatalf("%d pools have numbers", n)
	}
	s.Offer(s.now, &a.Pool, 1)
	before := a.times("recall")
	b := s.pool()
	if b.name != name {
		t.Fatalf("bug in the test: it has the number of %q, want %q", b.name, name)
	}
	s.answer(flight, all)
	if s.NextBatch(s.now) != nil {
		t.Error("what the pool before has offered is sent under the name of another")
	}
	b.gets(1)
	s.pass(2 * ttl)
	if b.times("recall") != 0 || a.times("recall") != before {
		t.Errorf("%d recalls of a pool that nobody wants anything of", b.times("recall"))
	}
}

// A push that names a pool can be late: another one has that name by now, in another role.
func TestAnEventForAnotherPoolOfThatNumberIsVoid(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	a := s.pool()
	a.gets(1)
	late := Event{Kind: Told, Pool: &a.Pool, Name: a.name, Epoch: "e", Tally: message.Tally{Recalled: 1}}
	s.removePool(&a.Pool)
	b := s.pool()
	s.Join(&a.Pool) // under the next number
	if s.deliver(late); a.owed != 0 || b.owed != 0 {
		t.Errorf("%d and %d are owed for what was said of a pool that is away", a.owed, b.owed)
	}
	late.Kind = Forget
	if s.deliver(late); a.Pool.heard != (message.Tally{}) {
		t.Errorf("it has heard %+v, which was said under another name", a.Pool.heard)
	}
}

// One that waits stays, however long.
func TestAPoolThatWaitsStays(t *testing.T) {
	s := start(t, Config{})
	s.beat = s.renew
	p := s.pool()
	p.ask(1)
	s.answer(s.batch(), queued)
	s.pass(10 * ttl)
	if n := len(s.Pools()); n != 1 {
		t.Fatalf("%d pools have numbers, want the one that waits", n)
	}
	s.grantPushed(s.now, p.request.ids[0])
	if p.times("granted") != 1 || p.held != 1 {
		t.Error("it is not granted what became free")
	}
}

// A pool whose Try is under way stays, too, and one that has said that it stays.
func TestAPoolThatTriesOrHasToHearStays(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	s.beat = s.renew
	tries, hears := s.pool(), s.pool()
	if s.PoolRequest(&tries.Pool) == nil {
		t.Fatal("no number")
	}
	s.Stay(&hears.Pool, true)
	if s.pass(5 * ttl); len(s.Pools()) != 2 {
		t.Fatalf("%d pools have numbers, want both", len(s.Pools()))
	}
	s.TryEnds(&tries.Pool)
	s.Stay(&hears.Pool, false)
	if s.pass(5 * ttl); len(s.Pools()) != 0 {
		t.Errorf("%d pools have numbers", len(s.Pools()))
	}
}

// The connection of a call that names a pool's permits broke, and Redis answered the call over
// another one. Redis may still execute the first sending, and would then count the permits of a
// pool that has left. So the pool stays, and calls name it, for as long as that can happen.
func TestAPoolStaysWhileACallThatBrokeMayBeExecuted(t *testing.T) {
	s := start(t, Config{})
	s.beat = s.renew
	p := s.pool()
	p.gets(1)
	k := s.call()
	s.CallBroke(s.now)
	s.renew(k)
	p.give()
	s.answer(s.batch(), all)
	if s.pass(2*ttl - time.Millisecond); len(s.Pools()) != 1 {
		t.Error("a pool left while a call that says it holds a permit may still be executed")
	}
	if s.pass(ttl); len(s.Pools()) != 0 {
		t.Error("the pool is kept")
	}
}

// A pool is closed while some of its connections are still ending.
func TestClosedPoolLeavesWithItsLastPermit(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	s.beat = s.renew
	p := s.pool()
	p.gets(2)
	s.ClosePool(s.now, &p.Pool)
	p.give()
	if s.pass(ttl); len(s.Pools()) != 1 {
		t.Error("a pool left while it held a permit")
	}
	p.give()
	if s.pass(ttl); len(s.Pools()) != 0 {
		t.Error("a closed pool without permits is kept")
	}
}

// A pool that was away when the session was closed is told so when it asks, or wants to stay.
func TestAPoolThatWasAwayHearsOfTheClose(t *testing.T) {
	s := start(t, Config{})
	s.beat = s.renew
	asks, stays := s.pool(), s.pool()
	if s.pass(ttl); len(s.Pools()) != 0 {
		t.Fatalf("%d pools have numbers", len(s.Pools()))
	}
	s.Close(s.now)
	if s.take(); asks.times("closed")+stays.times("closed") != 0 {
		t.Fatal("bug in the test: it was told with the others")
	}
	asks.ask(1)
	s.Stay(&stays.Pool, true)
	s.take()
	if asks.times("closed") != 1 || stays.times("closed") != 1 {
		t.Error("it waits for a permit of a session that is closed")
	}
}

// A request outlives its last local waiter by a moment, for waiters come and go with every query.
// It is withdrawn once; a waiter that comes in between keeps it.
func TestARequestOutlivesItsLastWaiter(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	p.ask(1)
	s.answer(s.batch(), queued)
	r := p.request
	p.ask(0)
	s.pass(withdrawAfter - time.Millisecond)
	p.ask(1)
	if s.pass(withdrawAfter); p.request != r || r.settled {
		t.Fatal("withdrawn although somebody waits")
	}
	p.ask(0)
	if s.pass(withdrawAfter); p.request != nil || !r.settled {
		t.Fatal("nobody waits, and it is not withdrawn")
	}
	if got := s.batch().dropped(); len(got) != 1 || got[0] != r.ids[0] {
		t.Errorf("dropped %q, want %q", got, r.ids)
	}
}

// The queue holds only the first UUID of a pool's request. So the others are dropped apart from it.
func TestAPoolsRequestIsWithdrawnUnderItsFirstUUID(t *testing.T) {
	s := start(t, Config{Capacity: 5})
	p := s.pool()
	p.ask(3)
	s.answer(s.batch(), queued)
	r := p.request
	s.ClosePool(s.now, &p.Pool)
	got := s.batch().X.Drop
	if len(got) != 2 || got[0] != message.Permits(ttl.Milliseconds(), r.ids[0]) ||
		got[1] != message.Permits(ttl.Milliseconds(), r.ids[1:]...) {
		t.Errorf("dropped %q, want the first of %q alone, and the others", got, r.ids)
	}
}

// A pool's rank in the queue follows from what it holds. So a pool that gives a permit back sends
// its request again.
func TestGivingAPermitBackAsksAgain(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.gets(1)
	p.ask(1)
	s.answer(s.batch(), queued)
	p.give()
	b := s.batch()
	if len(b.drops) != 1 || len(b.requests) != 1 || b.requests[0] != p.request {
		t.Errorf("sent %+v, want the permit back and the request again", b.X)
	}
}
