package semaphore

import (
	"math/rand/v2"
	"time"
)

// retryMost bounds the pause before what Redis did not answer is said again.
const retryMost = 250 * time.Millisecond

// pending reports whether Redis's queue holds anything of ours. s.mu is held.
func (s *Semaphore) pending() bool { return len(s.asks) > 0 }

// lookAgain repeats, after a pause, what is unanswered: requests that wait, in case their grant was pushed and
// lost, and drops that failed. The pause is jittered so that sessions spread. s.mu is held.
func (s *Semaphore) lookAgain(pause time.Duration) {
	at := s.sinceStart() + pause
	if s.closed || (s.again != nil && s.againAt <= at) {
		return
	}
	if s.again != nil {
		s.again.Stop()
	}
	s.againAt = at
	if pause > 10*time.Millisecond {
		pause += rand.N(pause / 8)
	}
	s.again = time.AfterFunc(pause, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.again = nil
		s.repeat()
	})
}

// repeat puts everything unanswered back into the outbox. s.mu is held.
func (s *Semaphore) repeat() {
	s.drops = append(s.drops, s.late...)
	s.late = nil
	s.confirms = s.moveCost > 0
	for id, a := range s.asks {
		if id == a.ids[0] && !a.behind {
			s.putOut(a)
		}
	}
	s.fly()
}
