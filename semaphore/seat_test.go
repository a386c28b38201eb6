package semaphore

import (
	"testing"
	"testing/synctest"
	"time"
)

// seated counts the pools that have a number.
func (s *session) seated() int {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.shares)
}

// want asks until it holds n permits.
func (p *pool) want(n int) {
	for range 20 {
		if p.share.Ask(max(0, n-p.holds())); p.holds() == n {
			break
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
	}
	time.Sleep(2 * withdrawAfter)
	synctest.Wait()
}

func (p *pool) holds() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.permits)
}

// Nothing stays of a pool that holds nothing and asks for nothing, whether anybody closed it or not. It comes
// back with its next request, under any number, and is told what concerns it and nothing else.
func TestAPoolThatHoldsNothingLeaves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 4, TTL: 3 * time.Second}
		s, other := w.join(cfg), w.join(cfg)
		a, b := s.pool(t), s.pool(t)
		a.obey, b.obey = true, true
		for round := range 4 { // numbers change hands
			first, second := a, b
			if round%2 == 1 {
				first, second = b, a
			}
			first.want(1)
			second.want(3)
			if first.holds() != 1 || second.holds() != 3 {
				t.Fatalf("round %d: %d and %d permits are held, want 1 and 3", round, first.holds(), second.holds())
			}
			before, others := second.heard("recall"), first.heard("recall")
			p := other.acquire(t) // from the one that holds most
			if second.heard("recall") != before+1 || first.heard("recall") != others {
				t.Errorf("round %d: %d recalls of the pool that holds 3, %d of the one that holds 1, want one and none",
					round, second.heard("recall")-before, first.heard("recall")-others)
			}
			release(t, p)
			first.give()
			second.give()
			second.give()
			time.Sleep(2 * cfg.TTL)
			if n := s.seated(); n != 0 {
				t.Errorf("round %d: %d pools that hold nothing have numbers", round, n)
			}
			if held, _ := w.redis.HKeys("{passbuddy-semaphore}:held"); len(held) != 0 {
				t.Errorf("round %d: Redis counts what %q hold", round, held)
			}
		}
		if s.sharers > 2 {
			t.Errorf("%d numbers were used", s.sharers)
		}
	})
}

// One that was away when the session was closed is told so when it asks.
func TestAPoolThatWasAwayHearsOfTheClose(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1, TTL: time.Second})
		p := s.pool(t)
		time.Sleep(5 * time.Second)
		if n := s.seated(); n != 0 {
			t.Fatalf("%d pools have numbers", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if p.heard("closed") != 0 {
			t.Fatal("bug in the test: it was told with the others")
		}
		p.share.Ask(1)
		if p.heard("closed") == 0 {
			t.Error("it waits for a permit of a session that is closed")
		}
		if _, err := p.share.Try(t.Context()); err == nil {
			t.Error("Try of a closed session succeeded")
		}
	})
}
