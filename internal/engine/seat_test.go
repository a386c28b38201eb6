package engine

import (
	"testing"
	"testing/synctest"
	"time"
)

// A pool that holds no permit and has no request leaves, closed or not. It comes back with its next
// request, under any number. Then it is told what concerns it, and nothing else.
func TestAPoolThatHoldsNothingLeaves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 4, TTL: 3 * time.Second}
		s, other := w.join(cfg), w.join(cfg)
		a, b := s.pool(t), s.pool(t)
		a.Obey, b.Obey = true, true
		for round := range 4 { // pools exchange their numbers
			first, second := a, b
			if round%2 == 1 {
				first, second = b, a
			}
			first.want(1)
			second.want(3)
			if len(first.Permits()) != 1 || len(second.Permits()) != 3 {
				t.Fatalf("round %d: %d and %d permits are held, want 1 and 3", round,
					len(first.Permits()), len(second.Permits()))
			}
			for _, p := range []*pool{first, second} {
				if number := poolNumber(p.Permits()[0]); number > "002" {
					t.Errorf("round %d: the number %s is in use", round, number)
				}
			}
			before, others := second.Heard("recall"), first.Heard("recall")
			p := other.acquire(t) // from the pool that holds most
			if second.Heard("recall") != before+1 || first.Heard("recall") != others {
				t.Errorf(
					"round %d: %d recalls of the pool that holds 3, %d of the one that holds 1, "+
						"want one and none",
					round, second.Heard("recall")-before, first.Heard("recall")-others)
			}
			release(t, p)
			first.GiveBack()
			second.GiveBack()
			second.GiveBack()
			time.Sleep(2 * cfg.TTL)
			if n := s.seated(); n != 0 {
				t.Errorf("round %d: %d pools that hold nothing have numbers", round, n)
			}
			if held := w.held(); len(held) != 0 {
				t.Errorf("round %d: Redis counts what %q hold", round, held)
			}
		}
	})
}

// A recall whose push was lost must not reach the next pool with that number: the permit was given
// back all the same. The answer to an offer made under that number must not reach it either.
func TestANumberIsReusedWithoutDebts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 2, TTL: 3 * time.Second}
		s := w.join(cfg)
		a := s.pool(t)
		a.want(1)
		time.Sleep(cfg.TTL)
		name := poolName(a.Permits()[0])
		a.GiveBack()
		synctest.Wait()
		w.Redis.HSet(keyBase+"recalls", "+"+name, "1") // as the script counts
		time.Sleep(2 * cfg.TTL)
		if n := s.seated(); n != 0 {
			t.Fatalf("%d pools have numbers, want none", n)
		}
		a.Offer(1)
		before := a.Heard("recall")
		b := s.pool(t)
		b.want(1)
		time.Sleep(2 * cfg.TTL)
		if got := poolName(b.Permits()[0]); got != name {
			t.Errorf("bug in the test: it has the number of %q, want %q", got, name)
		}
		if got := b.Heard("recall"); got != 0 || a.Heard("recall") != before {
			t.Errorf("%d recalls of a pool from which nothing is due", got)
		}
		b.GiveBack()
	})
}

// A pool that waits keeps its number, however long it waits.
func TestAPoolThatWaitsStays(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, TTL: time.Second}
		s, other := w.join(cfg), w.join(cfg)
		p := other.acquire(t)
		waits := s.pool(t)
		waits.Ask(1)
		time.Sleep(10 * time.Second)
		if n := s.seated(); n != 1 {
			t.Fatalf("%d pools have numbers, want the one that waits", n)
		}
		release(t, p)
		if waits.Heard("granted") != 1 {
			t.Error("it is not granted the permit that became free")
		}
	})
}

// A pool that had left before the session closed is told of the close when it asks.
func TestAPoolThatWasAwayHearsOfTheClose(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1, TTL: time.Second})
		p := s.pool(t)
		time.Sleep(5 * time.Second)
		if n := s.seated(); n != 0 {
			t.Fatalf("%d pools have numbers, want none", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if p.Heard("closed") != 0 {
			t.Fatal("bug in the test: it was told together with the others")
		}
		p.Ask(1)
		if p.Heard("closed") == 0 {
			t.Error("it waits for a permit of a session that is closed")
		}
		if _, err := p.Try(t.Context()); err == nil {
			t.Error("Try of a closed session succeeded")
		}
	})
}
