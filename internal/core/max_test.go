package core

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// stage.take checks the invariant of Config.Max after every step of these tests: permits held +
// permits asked for <= Max.

// The core sends no request that Max leaves no room for. The request fails if it does not wait.
// Otherwise the core admits it, in order, once there is room. An extension needs no room.
func TestMaxBoundsRequests(t *testing.T) {
	s := start(t, Config{Capacity: 5, Max: 2})
	p := s.acquire()
	s.acquire()
	_, try := s.wantsOne(message.Try)
	together := s.request(message.Try, s.NewPermit(), s.NewPermit(), s.NewPermit())
	if !errors.Is(try.err, ErrCapacity) || !errors.Is(together.err, ErrCapacity) {
		t.Errorf("beyond Max: one permit ends with %v, several with %v; want ErrCapacity",
			try.err, together.err)
	}
	first, waits := s.wantsOne(message.Wait)
	_, second := s.wantsOne(message.Wait)
	if s.NextBatch(s.now) != nil {
		t.Error("the core asks Redis for more than Max")
	}
	s.release(p)
	b := s.batch()
	if len(b.drops) != 1 || len(b.requests) != 1 || b.requests[0] != waits {
		t.Errorf("sent %+v, want the release and the first waiting request", b.X)
	}
	s.answer(b, all)
	s.release(first)
	b = s.batch()
	if len(b.requests) != 1 || b.requests[0] != second {
		t.Fatalf("sent %+v, want the second waiting request", b.X)
	}
	s.answer(b, all)
	s.extend(second.Permits[0])
	if b := s.batch(); len(b.requests) != 1 {
		t.Error("an extension at Max is not sent")
	}
}

// A smaller request does not overtake one for more permits than there is room for. Once that one's
// caller gives up, the core admits the requests behind it.
func TestAGivenUpRequestLeavesItsPlaceBelowMax(t *testing.T) {
	s := start(t, Config{Capacity: 5, Max: 2})
	s.acquire()
	large := s.request(message.Wait, s.NewPermit(), s.NewPermit())
	_, small := s.wantsOne(message.Wait)
	if s.NextBatch(s.now) != nil {
		t.Fatal("the small request has overtaken the large one")
	}
	_ = s.GiveUp(s.now, large, time.Second)
	if b := s.batch(); len(b.requests) != 1 || b.requests[0] != small || len(b.drops) != 0 {
		t.Errorf("sent %+v, want the small request", b.X)
	}
}

// A request in Redis's queue uses room below Max. Its room is free again when its caller gives up,
// and when Redis refuses it. A permit's room is free again when its lease is lost.
func TestARequestThatEndsMakesRoomBelowMax(t *testing.T) {
	for name, end := range map[string]func(s *stage, b *Batch, r *Request){
		"given up": func(s *stage, b *Batch, r *Request) {
			s.answer(b, queued)
			_ = s.GiveUp(s.now, r, time.Second)
		},
		"refused": func(s *stage, b *Batch, r *Request) {
			s.answer(b, message.Exchanged{Refused: r.ids})
		},
		"no place in the queue": func(s *stage, b *Batch, r *Request) {
			s.answer(b, message.Exchanged{Crowded: r.ids})
		},
		"lost": func(s *stage, b *Batch, r *Request) {
			s.answer(b, all)
			s.lose(s.now, r.Permits[0])
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{Max: 1})
			_, r := s.wantsOne(message.Wait)
			b := s.batch()
			_, next := s.wantsOne(message.Wait)
			end(s, b, r)
			if b := s.batch(); len(b.requests) != 1 || b.requests[0] != next {
				t.Errorf("sent %+v, want the next request", b.X)
			}
			if s.wants != 1 {
				t.Errorf("requests use the room of %d permits, want 1", s.wants)
			}
		})
	}
}

// One pool holds all permits that the session may hold, and another of its pools must not starve.
// No other session would ever recall a permit for it, so this session does.
func TestMaxIsSharedByThePoolsOfASession(t *testing.T) {
	s := start(t, Config{Capacity: 5, Max: 1})
	a, b := s.pool(), s.pool()
	a.ask(3)
	s.answer(s.batch(), all)
	if a.times("granted") != 1 || a.held != 1 {
		t.Fatal("bug in the test: the pool was granted nothing")
	}
	a.ask(0)
	b.ask(1)
	if a.times("recall") != 1 || a.owed != 1 || a.after != turnBelowMax {
		t.Errorf("told %q, owes %d after %v; want 1 recalled after a turn", a.told, a.owed, a.after)
	}
	s.wantsOne(message.Wait) // this one waits as well
	s.pass(time.Second)
	if a.times("recall") != 1 {
		t.Errorf("told %q, want the permit recalled once", a.told)
	}
	a.obey = true
	a.pay()
	s.answer(s.batch(), all)
	if b.times("granted") != 1 || len(s.permits) != 1 {
		t.Fatalf("a told %q, b told %q, %d held: no room was made", a.told, b.told, len(s.permits))
	}
	if s.wants != 0 && len(s.waiting) == 0 {
		t.Errorf("no request waits, and requests use the room of %d permits", s.wants)
	}
}

// The largest pool makes room: first it gives up its request for more, then permits. It gives them
// at once while it holds two more than the pool that waits. It asks again once there is room.
func TestTheLargestPoolMakesRoom(t *testing.T) {
	s := start(t, Config{Capacity: 9, Max: 4})
	a, b := s.pool(), s.pool()
	a.gets(3)
	a.ask(1)
	s.answer(s.batch(), queued)
	r := a.request
	b.ask(1)
	if a.request == r || !r.settled || a.times("recall") != 0 {
		t.Fatalf("told %q, want the request for more given up, and no permit recalled", a.told)
	}
	s.answer(s.batch(), all)
	if b.held != 1 {
		t.Fatalf("b holds %d, want 1", b.held)
	}
	a.obey = true
	b.ask(1)
	if a.times("recall") != 1 || a.after != 0 || a.held != 2 {
		t.Errorf("told %q after %v, want one of 3 recalled at once for a pool that holds 1",
			a.told, a.after)
	}
	s.answer(s.batch(), all)
	if b.ask(1); a.times("recall") != 1 {
		t.Errorf("told %q, want no recall from a pool that holds as many", a.told)
	}
	b.ask(0)
	s.pass(withdrawAfter)
	b.give()
	next := s.batch()
	if a.request == nil || !slices.Equal(next.asks(), a.request.ids) {
		t.Errorf("asked for %q although there is room for a, which wants one more", next.asks())
	}
}

// A pool can use a part of what it asks for. So the core cuts its request to the room that there
// is.
func TestAPoolsRequestIsCutToTheRoom(t *testing.T) {
	s := start(t, Config{Capacity: 9, Max: 3})
	s.acquire()
	large := s.request(message.Wait, s.NewPermit(), s.NewPermit(), s.NewPermit())
	small, _ := s.wantsOne(message.Wait)
	a := s.pool()
	a.ask(5)
	if n := len(a.request.ids); n != 2 || s.NextBatch(s.now) != nil {
		t.Fatalf("bug in the test: the pool asks for %d, want the 2 that there is room for, "+
			"behind the others", n)
	}
	_ = s.GiveUp(s.now, large, time.Second)
	b := s.batch()
	if want := append([]string{small.ID}, a.request.ids...); len(want) != 2 || !slices.Equal(b.asks(), want) {
		t.Errorf("the batch asks for %q, want 1 permit, and 1 more for the pool", b.asks())
	}
	if s.answer(b, all); a.held != 1 || len(s.asked) != 0 {
		t.Errorf("the pool holds %d, and the core asks for %d UUIDs; want 1 and 0",
			a.held, len(s.asked))
	}
}
