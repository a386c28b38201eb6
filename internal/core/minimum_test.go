package core

import (
	"slices"
	"testing"

	"github.com/passbuddy/passbuddy/internal/message"
)

// What a session gives back below its minimum is kept for it. So it asks again for what waits
// longest, in the batch that gives back: a request that a minimum lacks goes before others.
func TestAReleaseBelowTheMinimumAsksAgain(t *testing.T) {
	for _, test := range []struct {
		name      string
		min       int
		kind      message.Kind
		asksAgain bool
	}{
		{"the minimum lacks one", 2, message.Wait, true},
		{"the minimum is held", 1, message.Wait, false},
		{"no minimum", 0, message.Wait, false},
		{"what is tried for does not wait", 2, message.Try, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, Config{Capacity: 3, Min: test.min})
			s.replied(s.call(), message.Renewed{Min: int64(test.min)})
			p := s.acquire()
			s.acquire()
			_, first := s.wantsOne(test.kind)
			b := s.batch()
			if test.kind == message.Wait {
				s.answer(b, queued)
				s.wantsOne(message.Wait)
				s.answer(s.batch(), queued)
			}
			s.release(p)
			if test.kind == message.Try {
				s.answer(b, queued) // its answer was on its way
			}
			b = s.batch()
			if got := len(b.requests) == 1 && b.requests[0] == first; got != test.asksAgain ||
				!got && len(b.requests) > 0 {
				t.Errorf("asks again for %d of what waits, %v for the first; want %v",
					len(b.requests), got, test.asksAgain)
			}
		})
	}
}

// A batch in flight collects releases. The next batch asks for as many permits as the minimum then
// lacks, in the order in which their callers came.
func TestReleasesBelowTheMinimumAskForAll(t *testing.T) {
	s := start(t, Config{Capacity: 6, Min: 3})
	s.replied(s.call(), message.Renewed{Min: 3})
	held := []*Permit{s.acquire(), s.acquire(), s.acquire()}
	large := s.request(message.Wait, s.NewPermit(), s.NewPermit(), s.NewPermit(), s.NewPermit())
	pair := s.request(message.Wait, s.NewPermit(), s.NewPermit())
	_, next := s.wantsOne(message.Wait)
	s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	_, tried := s.wantsOne(message.Try)
	b := s.batch()
	_, last := s.wantsOne(message.Wait)
	for _, p := range held {
		s.release(p)
	}
	s.answer(b, message.Exchanged{Refused: tried.ids})

	b = s.batch()
	if want := []*Request{pair, next, last}; !slices.Equal(b.requests, want) {
		var numbers []uint64
		for _, r := range b.requests {
			numbers = append(numbers, r.number-large.number)
		}
		t.Errorf("asks for requests %d; want 1, 2 and the new one, 5: for 4 permits the minimum "+
			"has no room", numbers)
	}
}

// A grant that crosses a withdrawal goes back, too, and is then kept for the minimum.
func TestACrossedGrantBelowTheMinimumAsksAgain(t *testing.T) {
	s := start(t, Config{Capacity: 3, Min: 2})
	s.replied(s.call(), message.Renewed{Min: 2})
	s.acquire()
	p, first := s.wantsOne(message.Wait)
	_, second := s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	_ = s.GiveUp(s.now, first, 0)
	s.answer(s.batch(), queued)
	s.grantPushed(s.now, p.ID)
	if b := s.batch(); !slices.Equal(b.requests, []*Request{second}) || len(b.drops) != 1 {
		t.Errorf("gives %d back and asks for %d; want 1, and the request that waits",
			len(b.drops), len(b.requests))
	}
}
