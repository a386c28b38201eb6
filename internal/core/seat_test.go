package core

import (
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A pool that holds nothing and asks for nothing leaves the session without a trace, closed or not.
// It comes back with its next request, under any number. Then it is told what concerns it, and
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
		t.Errorf("the pools used %d numbers, want at most 2", s.numbers)
	}
}

// A recall whose push was lost, of a permit that was given back all the same, must not reach the
// next pool with that number. The session does not send an offer of the former pool for the next
// one.
func TestANumberIsReusedWithoutDebts(t *testing.T) {
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
		t.Fatalf("%d pools have numbers, want none", n)
	}
	s.Offer(s.now, &a.Pool, 1)
	before := a.times("recall")
	b := s.pool()
	if b.name != name {
		t.Fatalf("bug in the test: the pool has the name %q, want %q", b.name, name)
	}
	s.answer(flight, all)
	if s.NextBatch(s.now) != nil {
		t.Error("the offer of the former pool is sent for the next one")
	}
	b.gets(1)
	s.pass(2 * ttl)
	if b.times("recall") != 0 || a.times("recall") != before {
		t.Errorf("the next pool hears of %d recalls, want none", b.times("recall"))
	}
}

// A push that names a pool can be late: another pool may have that name by now, or the pool another
// name.
func TestAnEventForAnotherPoolOfThatNumberIsVoid(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	a := s.pool()
	a.gets(1)
	late := Event{Kind: Told, Pool: &a.Pool, Name: a.name, Epoch: "e", Tally: message.Tally{Recalled: 1}}
	s.removePool(&a.Pool)
	b := s.pool()
	s.Join(&a.Pool) // under the next number
	if s.deliver(late); a.owed != 0 || b.owed != 0 {
		t.Errorf("the pools owe %d and %d, want nothing by an event for a former name",
			a.owed, b.owed)
	}
	late.Kind = Forget
	if s.deliver(late); a.Pool.heard != (message.Tally{}) {
		t.Errorf("the pool has heard %+v, which was sent under its former name", a.Pool.heard)
	}
}

// A pool that waits keeps its number, however long it waits.
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
		t.Error("the pool is not granted the free permit")
	}
}

// A pool keeps its number while its Try is under way, and after it has called Stay.
func TestAPoolThatTriesOrHasToHearStays(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	s.beat = s.renew
	tries, hears := s.pool(), s.pool()
	if s.PoolRequest(&tries.Pool) == nil {
		t.Fatal("there is no number for the pool")
	}
	s.Stay(&hears.Pool, true)
	if s.pass(5 * ttl); len(s.Pools()) != 2 {
		t.Fatalf("%d pools have numbers, want both", len(s.Pools()))
	}
	s.TryEnds(&tries.Pool)
	s.Stay(&hears.Pool, false)
	if s.pass(5 * ttl); len(s.Pools()) != 0 {
		t.Errorf("%d pools have numbers, want none", len(s.Pools()))
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

// A pool that was away when the session was closed is told of that when it asks, or calls Stay.
func TestAPoolThatWasAwayHearsOfTheClose(t *testing.T) {
	s := start(t, Config{})
	s.beat = s.renew
	asks, stays := s.pool(), s.pool()
	if s.pass(ttl); len(s.Pools()) != 0 {
		t.Fatalf("%d pools have numbers, want none", len(s.Pools()))
	}
	s.Close(s.now)
	if s.take(); asks.times("closed")+stays.times("closed") != 0 {
		t.Fatal("bug in the test: a pool that was away is told with the others")
	}
	asks.ask(1)
	s.Stay(&stays.Pool, true)
	s.take()
	if asks.times("closed") != 1 || stays.times("closed") != 1 {
		t.Error("a pool waits for a permit of a closed session")
	}
}

// A request outlives its last local waiter by a moment, because waiters come and go with every
// query. The core withdraws it once; a waiter that comes in between keeps it.
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
		t.Fatal("the request is withdrawn, although a caller waits")
	}
	p.ask(0)
	if s.pass(withdrawAfter); p.request != nil || !r.settled {
		t.Fatal("the request is not withdrawn, although no caller waits")
	}
	if got := s.batch().dropped(); len(got) != 1 || got[0] != r.ids[0] {
		t.Errorf("the batch drops %q, want %q", got, r.ids)
	}
}

// The queue holds only the first UUID of a pool's request. So the core drops the others separately.
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
		t.Errorf("the batch drops %q, want the first of %q alone, then the others", got, r.ids)
	}
}

// A pool's rank in the queue depends on how many permits it holds. So a pool that gives one back
// sends its request again.
func TestGivingAPermitBackAsksAgain(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.gets(1)
	p.ask(1)
	s.answer(s.batch(), queued)
	p.give()
	b := s.batch()
	if len(b.drops) != 1 || len(b.requests) != 1 || b.requests[0] != p.request {
		t.Errorf("sent %+v, want the release and the request again", b.X)
	}
}
