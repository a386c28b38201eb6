package semaphore

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
)

// A paused fleet keeps and renews what it holds, and grants nothing, neither at once nor from the
// queue. Its callers learn who paused it. Resuming grants to the queue at once.
func TestPause(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a, b := w.join(Config{Capacity: 2}), w.join(Config{Capacity: 2, MaxAttempts: -1})
		p, q := a.acquire(t), a.acquire(t)
		if err := i.Pause(t.Context(), PauseOptions{Reason: "failover"}); err != nil {
			t.Fatal(err)
		}
		release(t, q)
		waiting := b.later(t.Context())
		time.Sleep(20 * time.Second)
		if waiting.IsDone() {
			t.Fatal("granted although paused")
		}
		if !p.Held() {
			t.Fatal("the pause cost a lease that was held")
		}
		if _, err := a.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("TryAcquire: %v", err)
		}
		_, err := a.Acquire(t.Context())
		if !errors.Is(err, ErrCapacity) || !strings.Contains(err.Error(), "ann@desk: failover") {
			t.Fatalf("the error does not say who paused: %v", err)
		}
		s, err := i.Snapshot(t.Context())
		if err != nil || s.Pause == nil || s.Pause.By != "ann@desk" || s.Pause.Reason != "failover" ||
			!s.Pause.Until.IsZero() || s.Pause.Drain {
			t.Fatalf("seen: %+v, %v", s.Pause, err)
		}
		if since := s.At.Sub(s.Pause.Since); since < 20*time.Second || since > 30*time.Second {
			t.Errorf("paused for %v", since)
		}
		if !a.Stats().Paused {
			t.Error("the session does not know that it is paused")
		}
		if err := i.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("the waiter was not granted when the fleet resumed: %v", waiting.Err)
		}
	})
}

// A pause with an end ends by itself.
func TestPauseForATime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 1, MaxAttempts: -1})
		if err := i.Pause(t.Context(), PauseOptions{For: 3 * time.Second}); err != nil {
			t.Fatal(err)
		}
		waiting := a.later(t.Context())
		<-waiting.Done
		if waiting.Err != nil || waiting.Took < 2900*time.Millisecond || waiting.Took > 3600*time.Millisecond {
			t.Fatalf("granted after %v, want 3 s: %v", waiting.Took, waiting.Err)
		}
		time.Sleep(5 * time.Second)
		if s, err := i.Snapshot(t.Context()); err != nil || s.Pause != nil {
			t.Errorf("still paused: %+v, %v", s.Pause, err)
		}
	})
}

// A drain takes back all that pools hold, minima included, and grants nothing until it is resumed.
func TestDrain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a, b := w.join(Config{Capacity: 6, Min: 2}), w.join(Config{Capacity: 6})
		pa, pb := a.pool(t), b.pool(t)
		pa.Obey, pb.Obey = true, true
		pa.fill(3)
		pb.fill(2)
		if len(pa.Permits())+len(pb.Permits()) != 5 {
			t.Fatalf("bug in the test: %d and %d held", len(pa.Permits()), len(pb.Permits()))
		}
		began := time.Now()
		if err := i.Pause(t.Context(), PauseOptions{Drain: true}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the drain took %v", took)
		}
		pa.Ask(1)
		time.Sleep(20 * time.Second)
		s, err := i.Snapshot(t.Context())
		if err != nil || s.Held != 0 || s.Pause == nil || !s.Pause.Drain {
			t.Fatalf("drained, but %d held, paused %+v, %v", s.Held, s.Pause, err)
		}
		if err := i.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(pa.Permits()) != 1 {
			t.Fatal("not granted after the fleet resumed")
		}
	})
}

// A drain that is not reached in time resumes, even if the operator has died meanwhile.
func TestADrainThatIsNotReached(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 2, MaxAttempts: -1})
		a.acquire(t)
		began := time.Now()
		err := i.Pause(t.Context(), PauseOptions{Drain: true, Timeout: 2 * time.Second})
		if !errors.Is(err, ErrStillHeld) {
			t.Fatalf("Pause: %v", err)
		}
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("it took %v, want 2 s", took)
		}
		if _, err := a.TryAcquire(t.Context()); err != nil {
			t.Fatalf("the fleet did not resume: %v", err)
		}

		a.crash()
		b := w.join(Config{Capacity: 2, MaxAttempts: -1})
		b.acquire(t)
		ctx, kill := context.WithTimeout(t.Context(), time.Second)
		defer kill()
		err = i.Pause(ctx, PauseOptions{Drain: true, Timeout: 10 * time.Second})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Pause: %v", err)
		}
		waiting := b.later(t.Context())
		time.Sleep(5 * time.Second)
		if waiting.IsDone() {
			t.Fatal("granted although paused")
		}
		time.Sleep(12 * time.Second)
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("the fleet did not resume without its operator: %v", waiting.Err)
		}
	})
}

// Resuming in the middle of a drain takes back the recalls.
func TestResumeWhileDraining(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 2})
		p := a.pool(t) // gives nothing back
		p.fill(2)
		draining := bubble.Later(func() (any, error) {
			return nil, i.Pause(t.Context(), PauseOptions{Drain: true, Timeout: time.Minute})
		})
		time.Sleep(time.Second)
		if draining.IsDone() || p.Count("recall") == 0 {
			t.Fatalf("nothing was recalled: %s", p.Told())
		}
		if err := w.inspector().Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p.Heard("keep") == 0 {
			t.Errorf("the recalls were not taken back: %s", p.Told())
		}
		p.GiveBack()
		p.GiveBack()
		<-draining.Done
	})
}

// A pause outlives Redis's state, as the operator's capacity does.
func TestAPauseOutlivesRedis(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 2, MaxAttempts: -1})
		a.acquire(t)
		if err := i.Pause(t.Context(), PauseOptions{Reason: "move"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		w.Redis.FlushAll()
		waiting := a.later(t.Context())
		time.Sleep(20 * time.Second)
		s, err := i.Snapshot(t.Context())
		if err != nil || s.Pause == nil || s.Pause.Reason != "move" || waiting.IsDone() {
			t.Fatalf("paused: %+v, %v; granted: %v", s.Pause, err, waiting.IsDone())
		}
		if err := i.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !waiting.IsDone() {
			t.Fatal("not granted after the fleet resumed")
		}
	})
}
