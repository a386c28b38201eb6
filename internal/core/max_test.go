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

// Redis is not asked for a request that Max leaves no room for. The request fails if it does not
// wait; otherwise it is admitted in its order as room is made. An extension needs no room.
func TestMaxBoundsWhatIsAskedFor(t *testing.T) {
	s := start(t, Config{Capacity: 5, Max: 2})
	p := s.acquire()
	s.acquire()
	_, try := s.wantsOne(message.Try)
	together := s.request(message.Try, s.NewPermit(), s.NewPermit(), s.NewPermit())
	if !errors.Is(try.err, ErrCapacity) || !errors.Is(together.err, ErrCapacity) {
		t.Errorf("more than Max: %v; more than Max together: %v", try.err, together.err)
	}
	first, waits := s.wantsOne(message.Wait)
	_, second := s.wantsOne(message.Wait)
	if s.NextBatch(s.now) != nil {
		t.Error("Redis is asked for more than Max")
	}
	s.release(p)
	b := s.batch()
	if len(b.drops) != 1 || len(b.requests) != 1 || b.requests[0] != waits {
		t.Errorf("sent %+v, want the release, and the first of those that wait", b.X)
	}
	s.answer(b, all)
	s.release(first)
	b = s.batch()
	if len(b.requests) != 1 || b.requests[0] != second {
		t.Fatalf("sent %+v, want the second", b.X)
	}
	s.answer(b, all)
	s.extend(second.Permits[0])
	if b := s.batch(); len(b.requests) != 1 {
		t.Error("extending at Max is refused")
	}
}

// One that asks for more than there is room for is not overtaken by a smaller one; once it is given
// up, those behind it are admitted.
func TestAGivenUpRequestLeavesItsPlaceBelowMax(t *testing.T) {
	s := start(t, Config{Capacity: 5, Max: 2})
	s.acquire()
	large := s.request(message.Wait, s.NewPermit(), s.NewPermit())
	_, small := s.wantsOne(message.Wait)
	if s.NextBatch(s.now) != nil {
		t.Fatal("the small one has overtaken the large one")
	}
	_ = s.GiveUp(s.now, large, time.Second)
	if b := s.batch(); len(b.requests) != 1 || b.requests[0] != small || len(b.drops) != 0 {
		t.Errorf("sent %+v, want the small one", b.X)
	}
}

// A request in Redis's queue counts as asked for. It leaves room when its caller gives up, and when
// Redis refuses it. A permit leaves room when its lease is lost.
func TestWhatEndsMakesRoomBelowMax(t *testing.T) {
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
				t.Errorf("sent %+v, want the next", b.X)
			}
			if s.wants != 1 {
				t.Errorf("%d permits count as asked for, want 1", s.wants)
			}
		})
	}
}

// One pool holds all that the session may; another of its pools must not starve. No other session
// would ever ask for a permit back, so this one does.
func TestMaxIsSharedByThePoolsOfASession(t *testing.T) {
	s := start(t, Config{Capacity: 5, Max: 1})
	a, b := s.pool(), s.pool()
	a.ask(3)
	s.answer(s.batch(), all)
	if a.times("granted") != 1 || a.held != 1 {
		t.Fatal("bug in the test: nothing granted")
	}
	a.ask(0)
	b.ask(1)
	if a.times("recall") != 1 || a.owed != 1 || a.after != turnBelowMax {
		t.Errorf("told %q, to give %d after %v; want 1 recalled after a turn", a.told, a.owed, a.after)
	}
	s.wantsOne(message.Wait) // which waits, too
	s.pass(time.Second)
	if a.times("recall") != 1 {
		t.Errorf("told %q: one permit is recalled twice", a.told)
	}
	a.obey = true
	a.pay()
	s.answer(s.batch(), all)
	if b.times("granted") != 1 || len(s.permits) != 1 {
		t.Fatalf("a told %q, b told %q, %d held: no room was made", a.told, b.told, len(s.permits))
	}
	if s.wants != 0 && len(s.waiting) == 0 {
		t.Errorf("%d permits counted as asked for", s.wants)
	}
}

// The pool that holds most gives up what it asks for first, then permits: at once while it has two
// more than the one that waits. It asks again once there is room.
func TestTheLargestPoolMakesRoom(t *testing.T) {
	s := start(t, Config{Capacity: 9, Max: 4})
	a, b := s.pool(), s.pool()
	a.gets(3)
	a.ask(1)
	s.answer(s.batch(), queued)
	r := a.request
	b.ask(1)
	if a.request == r || !r.settled || a.times("recall") != 0 {
		t.Fatalf("told %q: a permit is recalled while a request for more waits", a.told)
	}
	s.answer(s.batch(), all)
	if b.held != 1 {
		t.Fatalf("b holds %d", b.held)
	}
	a.obey = true
	b.ask(1)
	if a.times("recall") != 1 || a.after != 0 || a.held != 2 {
		t.Errorf("told %q after %v: want one of 3 at once for a pool that holds 1", a.told, a.after)
	}
	s.answer(s.batch(), all)
	if b.ask(1); a.times("recall") != 1 {
		t.Errorf("told %q: recalled from a pool that holds as many", a.told)
	}
	b.ask(0)
	s.pass(withdrawAfter)
	b.give()
	next := s.batch()
	if a.request == nil || !slices.Equal(next.asks(), a.request.ids) {
		t.Errorf("asked for %q although there is room for a, which wants one more", next.asks())
	}
}

// A pool is welcome to a part of what it asks for. So its request is cut to the room that there is.
func TestAPoolsRequestIsCutToTheRoom(t *testing.T) {
	s := start(t, Config{Capacity: 9, Max: 3})
	s.acquire()
	large := s.request(message.Wait, s.NewPermit(), s.NewPermit(), s.NewPermit())
	small, _ := s.wantsOne(message.Wait)
	a := s.pool()
	a.ask(5)
	if n := len(a.request.ids); n != 2 || s.NextBatch(s.now) != nil {
		t.Fatalf("bug in the test: it asks for %d, want what there is room for now, behind the others", n)
	}
	_ = s.GiveUp(s.now, large, time.Second)
	b := s.batch()
	if want := append([]string{small.ID}, a.request.ids...); len(want) != 2 || !slices.Equal(b.asks(), want) {
		t.Errorf("asked for %q, want 1 permit, and 1 more for the pool", b.asks())
	}
	if s.answer(b, all); a.held != 1 || len(s.asked) != 0 {
		t.Errorf("it holds %d, and %d UUIDs are asked for", a.held, len(s.asked))
	}
}
