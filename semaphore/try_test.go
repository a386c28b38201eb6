package semaphore

import (
	"testing"
	"testing/synctest"
)

// The script counts a permit of a pool's Try for the pool at once. Until a heartbeat put it right, Redis took the
// pool for one that holds less, and granted it more than its part.
func TestTryOfAPoolIsCountedAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 3})
		p := s.pool(t)
		held := func() string {
			return w.redis.HGet("{passbuddy-semaphore}:held", p.share.name)
		}
		a, err := p.share.Try(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := held(); got != "1" {
			t.Errorf("after one Try Redis counts %q permits of the pool, want 1", got)
		}
		b, err := p.share.Try(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := held(); got != "2" {
			t.Errorf("after two Tries Redis counts %q permits of the pool, want 2", got)
		}
		for _, permit := range []*Permit{a, b} {
			p.share.Give(permit)
		}
		synctest.Wait()
		if got := held(); got != "" {
			t.Errorf("after both were released Redis counts %q permits of the pool, want none", got)
		}
	})
}
