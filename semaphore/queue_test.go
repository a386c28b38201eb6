package semaphore

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
)

func TestWaitersAreServedInOrderAcrossSessions(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.join(Config{Capacity: 1}), w.join(Config{Capacity: 1}), w.join(Config{
			Capacity: 1})
		p := a.acquire(t)
		queue := []*bubble.Pending[*Permit]{b.later(t.Context()), c.later(t.Context()),
			a.later(t.Context()), b.later(t.Context())}
		for i, next := range queue {
			release(t, p)
			if !next.IsDone() || next.Err != nil {
				t.Fatalf("waiter %d was not served in its turn: %v", i, next.Err)
			}
			for j, other := range queue[i+1:] {
				if other.IsDone() {
					t.Fatalf("waiter %d was served before its turn", i+1+j)
				}
			}
			p = next.Result
		}
	})
}

func TestNewcomerDoesNotPassTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 2, MaxAttempts: -1}), w.join(Config{Capacity: 2})
		p := a.acquire(t)
		big := make(chan error, 1)
		go func() {
			permits, err := a.AcquireN(t.Context(), 2)
			if err == nil && len(permits) != 2 {
				err = errors.New("not two permits")
			}
			big <- err
		}()
		synctest.Wait()
		// One permit is free, but the head of the queue wants two.
		if _, err := b.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("a newcomer overtook the queue: %v", err)
		}
		small := b.later(t.Context())
		if small.IsDone() {
			t.Fatal("a small request overtook the big one before it")
		}
		release(t, p)
		if err := <-big; err != nil {
			t.Fatalf("the big request: %v", err)
		}
		if small.IsDone() {
			t.Fatal("over capacity")
		}
	})
}

func TestGrantIsPushedNotPolled(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, RetryInterval: 10 * time.Second}
		a, b := w.join(cfg), w.join(cfg)
		p := a.acquire(t)
		waiting := b.later(t.Context())
		time.Sleep(time.Second)
		release(t, p)
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("not granted by the release: %v", waiting.Err)
		}
		if waiting.Took != time.Second {
			t.Fatalf("granted after %v, want at the moment of the release", waiting.Took)
		}
	})
}

func TestWaitIsBoundedByAttempts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1, MaxAttempts: 4, RetryInterval: 250 * time.Millisecond})
		a.acquire(t)
		waiting := a.later(t.Context())
		<-waiting.Done
		if !errors.Is(waiting.Err, ErrCapacity) || waiting.Took != time.Second {
			t.Fatalf("after %v: %v, want ErrCapacity after 1s", waiting.Took, waiting.Err)
		}
	})
}

func TestCancelledWaiterLeavesTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1}), w.join(Config{Capacity: 1})
		p := a.acquire(t)
		reason := errors.New("the reason")
		ctx, cancel := context.WithCancelCause(t.Context())
		first := b.later(ctx)
		second := b.later(t.Context())
		cancel(reason)
		if !first.IsDone() {
			t.Fatal("a cancelled waiter did not return promptly")
		}
		for _, want := range []error{ErrCapacity, context.Canceled, reason} {
			if !errors.Is(first.Err, want) {
				t.Fatalf("error %q does not match %q", first.Err, want)
			}
		}
		synctest.Wait()
		if snap := a.snapshot(t); len(snap.Waiters) != 1 {
			t.Fatalf("waiters left: %+v", snap.Waiters)
		}
		release(t, p)
		if !second.IsDone() || second.Err != nil {
			t.Fatalf("a cancelled head did not let the next one through: %v", second.Err)
		}
	})
}

func TestGrantThatCrossesACancellationIsReturned(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1}), w.join(Config{Capacity: 1})
		p := a.acquire(t)
		ctx, cancel := context.WithCancel(t.Context())
		waiting := b.later(ctx)
		b.link.SetDeaf(true) // Redis grants the permit, but b cannot receive the push
		release(t, p)
		cancel()
		if !waiting.IsDone() || !errors.Is(waiting.Err, context.Canceled) {
			t.Fatalf("cancelled waiter: %v", waiting.Err)
		}
		b.link.SetDeaf(false)
		time.Sleep(time.Second) // b's first withdrawal got no reply
		synctest.Wait()
		if snap := a.snapshot(t); snap.Held != 0 || len(snap.Waiters) != 0 {
			t.Fatalf("the grant was not returned: %+v", snap)
		}
	})
}

func TestDeadHeadOfTheQueueIsSkipped(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, TTL: time.Second, MaxAttempts: -1}
		a, b, c := w.join(cfg), w.join(cfg), w.join(cfg)
		p := a.acquire(t)
		b.later(t.Context())
		waiting := c.later(t.Context())
		b.crash()
		time.Sleep(1100 * time.Millisecond)
		release(t, p)
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("the queue is stuck behind a dead session: %v", waiting.Err)
		}
	})
}
