package engine

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

// One pool of a session holds all permits that the session may hold. The other pools do not starve.
func TestMaxIsSharedByThePoolsOfASession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 5, Max: 1})
		a, b := s.pool(t), s.pool(t)
		a.Obey, b.Obey = true, true
		a.Ask(3)
		if a.Heard("granted") != 1 {
			t.Fatal("bug in the test: nothing granted")
		}
		b.Ask(1)
		if b.Heard("granted") != 1 {
			t.Fatalf("a told %q, b told %q: a gave no permit back for b", a.Told(), b.Told())
		}
		if got := s.state(t).Held; got != 1 {
			t.Errorf("%d held, Max is 1", got)
		}
	})
}

func TestMaxDoesNotStarveAPoolBehindAnother(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 5, Max: 1})
		a, b := s.pool(t), s.pool(t)
		a.Obey, b.Obey = true, true
		a.Ask(3) // 3 callers wait in pool a
		if a.Heard("granted") != 1 {
			t.Fatal("bug in the test: the pool was not granted its permit")
		}
		a.Ask(2) // two callers still wait, as allotment.settle reports after a grant
		b.Ask(1)
		time.Sleep(time.Minute)
		if b.Heard("granted") == 0 {
			t.Errorf("a told %q, b told %q: starved for a minute", a.Told(), b.Told())
		}
	})
}

func TestMaxDoesNotStarveAPoolWhileAnotherAsks(t *testing.T) {
	for _, most := range []int{0, 2} {
		t.Run(fmt.Sprint("Max ", most), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				x, y := w.join(Config{Capacity: 2, Max: most}), w.join(Config{Capacity: 2})
				a, b, c := x.pool(t), x.pool(t), y.pool(t)
				a.Obey, b.Obey, c.Obey = true, true, true
				c.Ask(1)
				synctest.Wait()
				a.Ask(1)
				if a.Heard("granted") != 1 || c.Heard("granted") != 1 {
					t.Fatal("bug in the test: the pool was not granted its permit")
				}
				a.Ask(1) // it waits in Redis, unserved, because both pools hold the same number
				synctest.Wait()
				b.Ask(1)
				time.Sleep(time.Minute)
				if b.Heard("granted") == 0 {
					t.Errorf("a told %q, b told %q: starved for a minute", a.Told(), b.Told())
				}
			})
		})
	}
}

func TestMaxServesTheRequestBehindALargeOne(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 20, Max: 10, Patience: forever})
		var plain []*Permit
		for range 5 {
			plain = append(plain, s.acquire(t))
		}
		var six []*Permit
		for range 6 {
			six = append(six, s.NewPermit())
		}
		go func() { _ = s.Acquire(t.Context(), Wait, six...) }()
		synctest.Wait()
		a := s.pool(t)
		a.Ask(5)
		release(t, plain[0]) // the six are granted
		synctest.Wait()
		release(t, plain[1])
		release(t, plain[2])
		time.Sleep(time.Minute)
		if got := s.state(t).Held; got < 10 && a.Heard("granted") == 0 {
			t.Errorf("%d held of Max 10, though a pool that could use one waits for a minute", got)
		}
	})
}

// The script that finds the largest holder looks beyond the first 64.
func TestLargestHolderIsFoundBeyond64(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 130, Min: 128, Patience: forever})
		for range 64 {
			p := a.pool(t)
			p.Ask(2)
			if p.Heard("granted") != 1 {
				t.Fatal("bug in the test: the pool was not granted its permit")
			}
		}
		time.Sleep(time.Second)
		b := w.join(Config{Capacity: 130, Patience: forever})
		hog := b.pool(t)
		hog.Obey = true
		hog.Ask(2)
		if hog.Heard("granted") != 1 {
			t.Fatal("bug in the test: the pool was not granted its permit")
		}
		c := w.join(Config{Capacity: 130, Patience: forever})
		q := c.later(t.Context())
		time.Sleep(time.Minute)
		if !q.IsDone() {
			t.Errorf("the request waits for a minute; the pool that holds two was told %q",
				hog.Told())
		}
	})
}

// A session below its minimum is granted first, and its missing permits are recalled from the
// largest holder.
func TestMinIsRecalledFromHoldersThatWereThereBefore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 2}), w.join(Config{Capacity: 2})
		p := a.pool(t)
		p.Obey = true
		p.Ask(2)
		if p.Heard("granted") == 0 {
			t.Fatal("bug in the test: nothing granted")
		}
		waiting := b.later(t.Context()) // a plain request has a claim to one
		if !waiting.IsDone() {
			t.Fatal("bug in the test: the pool ignores the recall")
		}
		late := w.join(Config{Capacity: 2, Min: 1})
		q := late.later(t.Context())
		if !q.IsDone() || q.Err != nil {
			t.Fatalf("a minimum was not recalled from a holder of one: %v", q.Err)
		}
	})
}

// No permit of a minimum is recalled, and idle ones stay.
func TestMinIsNotRecalled(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 2, Min: 2, Patience: forever})
		p := a.pool(t)
		p.Ask(2)
		if p.Heard("granted") == 0 {
			t.Fatal("bug in the test: nothing granted")
		}
		b := w.join(Config{Capacity: 2, Patience: forever})
		waiting := b.later(t.Context())
		p.Offer(2)
		time.Sleep(10 * time.Second)
		if waiting.IsDone() || p.Heard("recall") > 0 || p.Heard("promised") > 0 {
			t.Errorf("told %q: a permit of the minimum was recalled", p.Told())
		}
	})
}

// The script counts a permit of a pool's Try for the pool at once. Otherwise Redis would see the
// pool as holding less until the next heartbeat, and grant it more than its part.
func TestTryOfAPoolIsCountedAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 3})
		p := s.pool(t)
		a, err := p.Try(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held := func() string { return w.Redis.HGet(keyBase+"held", poolName(a)) }
		if got := held(); got != "1" {
			t.Errorf("after one Try Redis counts %q permits of the pool, want 1", got)
		}
		b, err := p.Try(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := held(); got != "2" {
			t.Errorf("after two Tries Redis counts %q permits of the pool, want 2", got)
		}
		for _, permit := range []*Permit{a, b} {
			p.Give(permit)
		}
		synctest.Wait()
		if got := held(); got != "" {
			t.Errorf("after both were released Redis counts %q permits of the pool, want none", got)
		}
	})
}

// Pools come and go while a session lives. The session reuses their numbers, and no state of a
// closed pool stays.
func TestPoolsForEver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 2, TTL: time.Second})
		for range maxPools + 10 { // without a heartbeat in between
			s.pool(t).Close()
		}
		for range 50 {
			p := s.pool(t)
			p.Ask(1)
			time.Sleep(100 * time.Millisecond)
			if p.Heard("granted") == 0 {
				t.Fatal("a pool with a reused number is granted no permit")
			}
			if n := p.Heard("recall"); n > 0 {
				t.Fatalf("recalled %d times, for the pools that had its number before", n)
			}
			if number := poolNumber(p.Permits()[0]); number > "002" {
				t.Errorf("the number %s is in use", number)
			}
			p.GiveBack()
			p.Close()
			time.Sleep(2 * time.Second) // heartbeats
		}
		if n := s.seated(); n != 0 {
			t.Errorf("%d pools are left", n)
		}
		if held := w.held(); len(held) != 0 {
			t.Errorf("Redis counts what %q hold", held)
		}
	})
}

// maxPools is how many pools a session has numbers for: core.maxPools.
const maxPools = 0xfff

// Pools that Redis has heard of come and go faster than heartbeats, which take them out. A new one
// waits for a heartbeat if all numbers are taken.
func TestPoolsOutrunHeartbeats(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 2, TTL: time.Hour})
		began := time.Now()
		together := subset.Length(512, 1)
		for opened := 0; opened < maxPools+10; opened += together {
			var pools []*pool
			for range together {
				p := s.pool(t)
				p.Ask(1)
				p.Ask(0)
				pools = append(pools, p)
			}
			synctest.Wait()
			for _, p := range pools {
				p.GiveBack()
				p.Close()
			}
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("%d pools took %v: they waited for the heartbeat's tick", maxPools+10, took)
		}
	})
}

// A pool is closed while some of its connections are still ending.
func TestClosedPoolLeavesWithItsLastPermit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 2})
		p := s.pool(t)
		p.want(2)
		p.Close()
		p.GiveBack()
		time.Sleep(5 * time.Second)
		if s.seated() != 1 {
			t.Error("a pool left while it held a permit")
		}
		p.GiveBack()
		time.Sleep(5 * time.Second)
		if s.seated() != 0 {
			t.Error("a closed pool without permits stays")
		}
		if keys := w.Redis.Keys(); slices.Contains(keys, keyBase+"levels") {
			t.Errorf("keys %q", keys)
		}
	})
}
