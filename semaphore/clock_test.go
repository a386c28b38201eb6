package semaphore

import (
	"errors"
	"strconv"
	"testing"
	"time"
)

// Redis's host has its clock set.
func TestClockStep(t *testing.T) {
	for name, step := range map[string]time.Duration{"an hour on": time.Hour, "an hour back": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 3, MaxAttempts: -1}
				a, b := w.join(cfg), w.join(cfg)
				dead := w.join(cfg)
				p, q := a.acquire(t), b.acquire(t)
				dead.acquire(t)
				dead.link.setCut(true)
				time.Sleep(100 * time.Millisecond)
				w.redis.SetTime(time.Now().Add(step)) // and there it stands: the hardest clock of all
				waiting := b.later(t.Context())
				if waiting.isDone() {
					t.Fatal("granted what others hold: the step ended their leases")
				}
				for range 100 { // the clock goes on, at its new time
					time.Sleep(100 * time.Millisecond)
					w.redis.SetTime(time.Now().Add(step))
				}
				if !p.Held() || !q.Held() {
					t.Error("the living lost what they hold")
				}
				if !waiting.isDone() || waiting.err != nil {
					t.Errorf("the dead keep what they held: %v", waiting.err)
				}
				if got := a.snapshot(t).Held; got != 3 {
					t.Errorf("%d held, want 3", got)
				}
			})
		})
	}
}

// A newcomer is the first to see a clock that was set. It cannot tell that from a fleet that died.
func TestClockStepSeenByANewcomerFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1})
		p := a.acquire(t)
		time.Sleep(100 * time.Millisecond)
		w.redis.SetTime(time.Now().Add(time.Hour))
		b := w.join(Config{Capacity: 1})
		if _, err := b.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("granted what another holds: %v", err)
		}
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			w.redis.SetTime(time.Now().Add(time.Hour))
		}
		if !p.Held() {
			t.Error("the holder lost its permit")
		}
	})
}

// The dead must not live on because a newcomer thinks that the clock was set.
func TestALongDeadFleetIsNotTakenForAClockStep(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1})
		a.acquire(t)
		a.crash()
		time.Sleep(time.Hour)
		b := w.join(Config{Capacity: 1})
		if _, err := b.TryAcquire(t.Context()); err != nil {
			t.Errorf("an hour after the holder died: %v", err)
		}
	})
}

// A session that was asleep for an hour, and its clock with it, finds Redis's clock an hour ahead. The others know better.
func TestASleeperDoesNotTurnTheClockBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1}), w.join(Config{Capacity: 1})
		time.Sleep(10 * time.Second)
		b.mu.Lock()
		b.anchor.redis -= time.Hour.Milliseconds()
		b.mu.Unlock()
		b.acquire(t)
		// Less than a heartbeat: what it has missed since the others' last one, for the leases last longer by it.
		if skew, _ := strconv.Atoi(w.redis.HGet("{passbuddy-semaphore}:meta", "skew")); skew < 0 || skew > 2000 {
			t.Errorf("skew %d ms", skew)
		}
		if a.snapshot(t).Held != 1 {
			t.Error("not held")
		}
	})
}
