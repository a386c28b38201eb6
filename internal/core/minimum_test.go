package core

import (
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
