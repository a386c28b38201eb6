package semaphore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// The clock of Redis's host steps.
func TestClockStep(t *testing.T) {
	for name, step := range map[string]time.Duration{"an hour on": time.Hour,
		"an hour back": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 3, MaxAttempts: -1}
				a, b := w.join(cfg), w.join(cfg)
				dead := w.join(cfg)
				p, q := a.acquire(t), b.acquire(t)
				dead.acquire(t)
				dead.link.SetCut(true)
				time.Sleep(100 * time.Millisecond)
				w.Redis.SetTime(time.Now().Add(step)) // and the clock stands still: the worst case
				waiting := b.later(t.Context())
				if waiting.IsDone() {
					t.Fatal("the step ended leases: their permits were granted again")
				}
				for range 100 { // the clock goes on, at its new time
					time.Sleep(100 * time.Millisecond)
					w.Redis.SetTime(time.Now().Add(step))
				}
				if !p.Held() || !q.Held() {
					t.Error("live sessions lost their permits")
				}
				if !waiting.IsDone() || waiting.Err != nil {
					t.Errorf("a dead session keeps its permits: %v", waiting.Err)
				}
				if got := a.snapshot(t).Held; got != 3 {
					t.Errorf("%d held, want 3", got)
				}
			})
		})
	}
}

// A newcomer is the first to see a step of the clock. It cannot tell the step from a fleet that has
// died.
func TestClockStepSeenByANewcomerFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1})
		p := a.acquire(t)
		time.Sleep(100 * time.Millisecond)
		w.Redis.SetTime(time.Now().Add(time.Hour))
		b := w.join(Config{Capacity: 1})
		if _, err := b.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("another session's permit was granted: %v", err)
		}
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			w.Redis.SetTime(time.Now().Add(time.Hour))
		}
		if !p.Held() {
			t.Error("the holder lost its permit")
		}
	})
}

// An operator is the first to see a step of the clock. Its scripts end no lease that lasts.
func TestClockStepSeenByAnOperatorFirst(t *testing.T) {
	verbs := map[string]func(ctx context.Context, i *Inspector, session string) error{
		"capacity": func(ctx context.Context, i *Inspector, _ string) error {
			return i.SetCapacity(ctx, 1)
		},
		"pause": func(ctx context.Context, i *Inspector, _ string) error {
			return i.Pause(ctx, PauseOptions{For: time.Second})
		},
		"resume": func(ctx context.Context, i *Inspector, _ string) error {
			return i.Resume(ctx)
		},
		"evict": func(ctx context.Context, i *Inspector, session string) error {
			held, err := i.engine.Evict(ctx, session, false, "", "")
			if err == nil && held != 1 {
				return fmt.Errorf("%d permits of the session, want 1", held)
			}
			return err
		},
	}
	for name, verb := range verbs {
		for _, step := range []time.Duration{time.Hour, -time.Hour} {
			t.Run(name+" "+step.String(), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					i := w.inspector()
					a, b := w.join(Config{Capacity: 1}), w.join(Config{Capacity: 1, MaxAttempts: -1})
					p := a.acquire(t)
					waiting := b.later(t.Context())
					time.Sleep(100 * time.Millisecond)
					s := a.snapshot(t)
					w.Redis.SetTime(time.Now().Add(step))
					if err := verb(t.Context(), i, s.Holders[0].Session); err != nil {
						t.Fatal(err)
					}
					for range 100 {
						time.Sleep(100 * time.Millisecond)
						w.Redis.SetTime(time.Now().Add(step))
						if waiting.IsDone() {
							t.Fatal("the step ended a lease: its permit was granted again")
						}
					}
					if !p.Held() {
						t.Error("a live session lost its permit")
					}
					release(t, p)
					time.Sleep(100 * time.Millisecond)
					if !waiting.IsDone() || waiting.Err != nil {
						t.Errorf("a permit given back is not granted: %v", waiting.Err)
					}
				})
			})
		}
	}
}

// The clock is set while an operator drains the fleet. The drain is reached when the permits are
// given back, and not before.
func TestClockStepWhileDraining(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, 2 * time.Second, -time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				a := w.join(Config{Capacity: 1})
				p := a.acquire(t)
				i := w.inspector()
				draining := bubble.Later(func() (any, error) {
					return nil, i.Pause(t.Context(), PauseOptions{Drain: true})
				})
				// The holder is cut off for a while, so its lease ends soon: at 5 s. The others'
				// heartbeats come each third of a lease; the operator looks more often.
				w.join(Config{Capacity: 1})
				time.Sleep(100 * time.Millisecond)
				a.link.SetCut(true)
				time.Sleep(3100 * time.Millisecond)
				w.Redis.SetTime(time.Now().Add(step))
				time.Sleep(200 * time.Millisecond)
				a.link.SetCut(false)
				for range 50 {
					time.Sleep(100 * time.Millisecond)
					w.Redis.SetTime(time.Now().Add(step))
					if draining.IsDone() {
						t.Fatalf("drained, it says, and a permit is held: %v", draining.Err)
					}
				}
				if !p.Held() {
					t.Fatal("a live session lost its permit")
				}
				release(t, p)
				time.Sleep(time.Second)
				if !draining.IsDone() || draining.Err != nil {
					t.Errorf("not drained: %v", draining.Err)
				}
			})
		})
	}
}

// A fleet that died long ago holds nothing, as an operator sees it.
func TestALongDeadFleetIsDrained(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1})
		a.acquire(t)
		a.crash()
		time.Sleep(time.Hour)
		err := w.inspector().Pause(t.Context(), PauseOptions{Drain: true, Timeout: time.Second})
		if err != nil {
			t.Errorf("an hour after the holder died: %v", err)
		}
	})
}

// A newcomer that suspects a step of the clock does not keep dead sessions alive.
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

// A step of the clock that goes unnoticed fits into the margin between the end of trust and the end
// of a lease. The fleet's shortest lease decides which steps are noticed, whichever session looks
// first. It still does for a while after that session is gone.
func TestClockStepsWithinALease(t *testing.T) {
	for _, c := range []struct {
		name         string
		holder, next time.Duration // their leases
		gone         time.Duration // the lease of a session that has left
		wait, step   time.Duration
		cut          bool
	}{
		{name: "1 s, cut off", holder: time.Second, next: time.Second, wait: 700 * time.Millisecond,
			step: 390 * time.Millisecond, cut: true},
		{name: "2 s, cut off", holder: 2 * time.Second, next: 2 * time.Second,
			wait: 1700 * time.Millisecond, step: 390 * time.Millisecond, cut: true},
		{name: "5 s, cut off", holder: 5 * time.Second, next: 5 * time.Second,
			wait: 4300 * time.Millisecond, step: 390 * time.Millisecond, cut: true},
		{name: "400 ms", holder: 400 * time.Millisecond, next: 400 * time.Millisecond,
			wait: 50 * time.Millisecond, step: 390 * time.Millisecond},
		{name: "100 ms", holder: 100 * time.Millisecond, next: 100 * time.Millisecond,
			wait: 20 * time.Millisecond, step: 90 * time.Millisecond},
		{name: "1 s beside a minute", holder: time.Second, next: time.Minute,
			wait: 700 * time.Millisecond, step: 390 * time.Millisecond, cut: true},
		{name: "a minute beside 1 s", holder: time.Minute, next: time.Second,
			wait: 52 * time.Second, step: 5 * time.Second, cut: true},
		{name: "5 s, after 1 s has left", holder: 5 * time.Second, next: time.Minute,
			gone: time.Second, wait: 4300 * time.Millisecond, step: 450 * time.Millisecond,
			cut: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				if c.gone > 0 {
					g := w.join(Config{Capacity: 1, TTL: c.gone})
					if err := g.Close(); err != nil {
						t.Fatal(err)
					}
				}
				a := w.join(Config{Capacity: 1, MaxAttempts: -1, TTL: c.holder})
				b := w.join(Config{Capacity: 1, MaxAttempts: -1, TTL: c.next})
				if c.gone > 0 {
					time.Sleep(10 * time.Minute)
				}
				p := a.acquire(t)
				if c.cut {
					a.link.SetCut(true)
				}
				time.Sleep(c.wait)
				w.Redis.SetTime(time.Now().Add(c.step))
				if q, err := b.TryAcquire(t.Context()); err == nil && p.Held() && q.Held() {
					t.Error("two sessions hold the only permit")
				}
			})
		})
	}
}

// Once its short leases are gone for good, a fleet again accepts the steps that its own leases
// allow.
func TestTheShortestLeaseIsForgotten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		shortest := func() string { return w.Redis.HGet("{passbuddy-semaphore}:meta", "lease") }
		w.join(Config{Capacity: 1})
		if got := shortest(); got != "5000" {
			t.Errorf("with one session of 5 s: %s", got)
		}
		short := w.join(Config{Capacity: 1, TTL: time.Second})
		w.join(Config{Capacity: 1, TTL: time.Minute})
		long := subset.Length(2*time.Minute, 5*time.Minute)
		time.Sleep(long)
		if got := shortest(); got != "1000" {
			t.Errorf("with a second session of 1 s: %s", got)
		}
		short.crash()
		time.Sleep(time.Second)
		if got := shortest(); got != "1000" {
			t.Errorf("right after the second died: %s", got)
		}
		time.Sleep(long)
		if got := shortest(); got != "5000" {
			t.Errorf("long after the second died: %s", got)
		}
	})
}
