package semaphore

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestMinIsKeptWhileItIsNotUsed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 5, Min: 2})
		b := w.join(Config{Capacity: 5})
		for i := range 3 {
			if _, err := b.TryAcquire(t.Context()); err != nil {
				t.Fatalf("permit %d of the 3 that are not reserved: %v", i+1, err)
			}
		}
		if _, err := b.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("granted a permit that is reserved for another session: %v", err)
		}
		first := b.later(t.Context())
		p := [2]*Permit{}
		for i := range p { // ahead of b's request, which waits
			var err error
			if p[i], err = a.TryAcquire(t.Context()); err != nil {
				t.Fatalf("permit %d of the 2 that are reserved: %v", i+1, err)
			}
		}
		release(t, p[0])
		if first.IsDone() {
			t.Fatal("the permit is not reserved again after its first use")
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if !first.IsDone() || first.Err != nil {
			t.Fatal("a permit stays reserved for a session that has left")
		}
		w.join(Config{Capacity: 5, Min: 5}) // its minimum does not block another's either
	})
}

func TestMinEndsWithItsSession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 2, Min: 2, TTL: time.Second})
		b := w.join(Config{Capacity: 2, TTL: time.Second, MaxAttempts: -1})
		waiting := b.later(t.Context())
		if waiting.IsDone() {
			t.Fatal("granted a permit that is reserved for another session")
		}
		a.link.SetCut(true)
		time.Sleep(1500 * time.Millisecond) // a lease, and a heartbeat that finds the lease over
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("a permit stays reserved for a dead session: %v", waiting.Err)
		}
	})
}

func TestMinimaNeverExceedTheCapacity(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.join(Config{Capacity: 5, Min: 3})
		c, _ := w.Client()
		defer c.Close()
		_, err := New(t.Context(), c, Config{Capacity: 5, Min: 3})
		if !errors.Is(err, ErrCapacity) || !strings.Contains(err.Error(), "Config.Min is 3") {
			t.Fatalf("minima of 3 and 3 at capacity 5: %v", err)
		}
		if got := len(w.Redis.Keys()); got == 0 {
			t.Fatal("bug in the test: Redis has no keys")
		}
		b := w.join(Config{Capacity: 5, Min: 2})
		if snap := b.snapshot(t); len(snap.Sessions) != 2 {
			t.Errorf("%d sessions, want none for the refused one", len(snap.Sessions))
		}
	})
}

func TestMaxBoundsASession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 5, Max: 2, MaxAttempts: -1})
		p := s.acquire(t)
		s.acquire(t)
		if _, err := s.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("more than Max: %v", err)
		}
		if _, err := s.AcquireN(t.Context(), 3); !errors.Is(err, ErrCapacity) {
			t.Fatalf("more than Max together: %v", err)
		}
		first, second := s.later(t.Context()), s.later(t.Context())
		if got := s.snapshot(t); got.Held != 2 || len(got.Waiters) != 0 {
			t.Fatalf("%d held, %d waiters in Redis", got.Held, len(got.Waiters))
		}
		release(t, p)
		if !first.IsDone() || second.IsDone() {
			t.Fatalf("after one release: first %v, second %v", first.IsDone(), second.IsDone())
		}
		release(t, first.Result)
		if !second.IsDone() {
			t.Fatal("the second request was not granted")
		}
		if p.Held() {
			t.Fatal("bug in the test: the released permit is held")
		}
		if err := second.Result.Acquire(t.Context()); err != nil {
			t.Errorf("extending at Max: %v", err)
		}
	})
}

func TestAGivenUpRequestLeavesItsPlaceBelowMax(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1, Max: 1, MaxAttempts: 1,
			RetryInterval: 100 * time.Millisecond})
		other := w.join(Config{Capacity: 1})
		held := other.acquire(t)
		for range 3 { // in Redis's queue, and behind it
			if _, err := s.Acquire(t.Context()); !errors.Is(err, ErrCapacity) {
				t.Fatalf("at capacity: %v", err)
			}
		}
		a, b := s.later(t.Context()), s.later(t.Context())
		time.Sleep(time.Second)
		if !a.IsDone() || !b.IsDone() {
			t.Fatal("still waiting")
		}
		release(t, held)
		s.acquire(t)
	})
}

func TestMaxWaitersBoundsTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, MaxWaiters: 2, MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		held := a.acquire(t)
		first, second := a.later(t.Context()), b.later(t.Context())
		third := b.later(t.Context())
		if !third.IsDone() || !errors.Is(third.Err, ErrCapacity) ||
			!strings.Contains(third.Err.Error(), "2 wait") {
			t.Fatalf("the third in a queue of two: %v", third.Err)
		}
		time.Sleep(2 * time.Second) // queued requests ask again, and keep their places
		release(t, held)
		if !first.IsDone() || first.Err != nil || second.IsDone() {
			t.Fatalf("first: %v", first.Err)
		}
		if third = b.later(t.Context()); third.IsDone() {
			t.Fatalf("the queue has room again: %v", third.Err)
		}
	})
}

func TestLimitsAreRefusedByName(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c, _ := w.Client()
		defer c.Close()
		for field, cfg := range map[string]Config{
			"Config.Min is -1":        {Min: -1},
			"Config.Min is 11":        {Min: 11},
			"Config.Max is -1":        {Max: -1},
			"Config.Max is 2":         {Min: 3, Max: 2},
			"Config.Weight is -1":     {Weight: -1},
			"Config.Weight is 101":    {Weight: 101},
			"Config.MaxWaiters is -1": {MaxWaiters: -1},
		} {
			if _, err := New(context.Background(), c, cfg); err == nil ||
				!strings.Contains(err.Error(), field) {
				t.Errorf("%+v: %v, want %q", cfg, err, field)
			}
		}
	})
}
