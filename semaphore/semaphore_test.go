package semaphore

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

func TestNeverMoreThanCapacity(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 3}), w.join(Config{Capacity: 3})
		a.acquire(t)
		a.acquire(t)
		last := b.acquire(t)
		if _, err := a.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("a fourth permit: %v, want ErrCapacity", err)
		}
		if snap := b.snapshot(t); snap.Held != 3 || snap.Capacity != 3 || len(snap.Holders) != 2 ||
			len(snap.Sessions) != 2 {
			t.Fatalf("snapshot %+v", snap)
		}
		release(t, last)
		p, err := a.TryAcquire(t.Context())
		if err != nil {
			t.Fatalf("after a release: %v", err)
		}
		if !p.Held() {
			t.Fatal("an acquired permit is not held")
		}
	})
}

func TestAcquireNIsAllOrNone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 3})
		a.acquire(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.AcquireN(ctx, 3); !errors.Is(err, ErrCapacity) ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("three permits with two free: %v", err)
		}
		synctest.Wait()
		if snap := a.snapshot(t); snap.Held != 1 || len(snap.Waiters) != 0 {
			t.Fatalf("a refused request left state behind: %+v", snap)
		}
		if permits, err := a.AcquireN(t.Context(), 2); err != nil || len(permits) != 2 {
			t.Fatalf("two permits with two free: %v, %v", permits, err)
		}
		began := time.Now()
		if _, err := a.AcquireN(t.Context(), 4); !errors.Is(err, ErrCapacity) ||
			time.Since(began) > 0 {
			t.Fatalf("more than the whole capacity: %v after %v, want a refusal at once", err,
				time.Since(began))
		}
		if _, err := a.AcquireN(t.Context(), 0); err == nil {
			t.Fatal("zero permits were granted")
		}
	})
}

func TestLostReplyIsNotASecondGrant(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 5, TTL: 20 * time.Second})
		a.link.SetDeaf(true)
		waiting := a.later(t.Context())
		time.Sleep(600 * time.Millisecond) // past the read timeout: the request is repeated
		a.link.SetDeaf(false)
		<-waiting.Done
		if waiting.Err != nil {
			t.Fatalf("Acquire: %v", waiting.Err)
		}
		if snap := a.snapshot(t); snap.Held != 1 {
			t.Fatalf("%d permits held, want 1", snap.Held)
		}
	})
}

func TestCrashGivesPermitsBackWithinOneLease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 2, TTL: 3 * time.Second, RetryInterval: 10 * time.Second,
			MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		a.acquire(t)
		a.acquire(t)
		time.Sleep(10 * time.Second) // the heartbeat renews the lease all the time
		if snap := b.snapshot(t); snap.Held != 2 {
			t.Fatalf("the heartbeat did not renew: %+v", snap)
		}
		waiting := b.later(t.Context())
		began := time.Now()
		a.crash()
		<-waiting.Done
		if took := time.Since(began); waiting.Err != nil || took > 3*time.Second+
			10*time.Millisecond {
			t.Fatalf("granted %v after the crash: %v, want within one lease", took, waiting.Err)
		}
	})
}

// The holder knows of the loss before its permit can be granted to another session.
func TestLossIsNoticedBeforeRedisGivesThePermitAway(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, TTL: 2 * time.Second, MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		p := a.acquire(t)
		waiting := b.later(t.Context())
		time.Sleep(1500 * time.Millisecond)
		a.link.SetCut(true)
		select {
		case <-p.Lost():
		case <-waiting.Done:
			t.Fatal("b was granted the permit while a still trusted its lease")
		}
		if p.Held() {
			t.Fatal("a lost permit is held")
		}
		if waiting.IsDone() {
			t.Fatal(
				"the loss and the grant come at the same instant, which leaves no time to abort")
		}
		<-waiting.Done
		if waiting.Err != nil {
			t.Fatal(waiting.Err)
		}
		if err := p.Release(t.Context()); err != nil {
			t.Fatalf("releasing a lost permit: %v", err)
		}
		if !waiting.Result.Held() {
			t.Fatal("b's permit was taken by a's release")
		}
	})
}

func TestCapacityIsTheSmallestDeclaredUnlessSet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 3, MaxAttempts: -1})
		b := w.join(Config{Capacity: 1})
		if got := a.snapshot(t).Capacity; got != 1 {
			t.Fatalf("capacity in force %d, want the smallest declared", got)
		}
		if err := a.SetCapacity(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		first, _ := a.acquire(t), a.acquire(t)
		waiting := a.later(t.Context())
		if waiting.IsDone() {
			t.Fatal("over the capacity that was set")
		}
		if err := b.SetCapacity(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		if !waiting.IsDone() {
			t.Fatal("raising the capacity did not grant to the waiter")
		}
		if err := b.SetCapacity(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if !first.Held() || a.snapshot(t).Held != 3 {
			t.Fatal("lowering the capacity revoked a permit")
		}
		release(t, first)
		if _, err := b.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("granted above a lowered capacity: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := a.SetCapacity(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if got := a.snapshot(t); got.Capacity != 3 || got.OperatorCapacity != 0 {
			t.Fatalf("capacity in force %+v, want a's own", got)
		}
		if err := a.SetCapacity(t.Context(), -1); err == nil {
			t.Fatal("a negative capacity was accepted")
		}
	})
}

func TestCloseReleasesEverything(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 2}), w.join(Config{Capacity: 2})
		p := a.acquire(t)
		a.acquire(t)
		mine, other := a.later(t.Context()), b.later(t.Context())
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if !mine.IsDone() || !errors.Is(mine.Err, ErrClosed) {
			t.Fatalf("a waiter of the closed session: %v", mine.Err)
		}
		if !other.IsDone() || other.Err != nil {
			t.Fatalf("the permit did not go to the next request in the queue: %v", other.Err)
		}
		select {
		case <-p.Lost():
		default:
			t.Fatal("a permit of a closed session is not lost")
		}
		if p.Held() {
			t.Fatal("a permit of a closed session is held")
		}
		if _, err := a.Acquire(t.Context()); !errors.Is(err, ErrClosed) {
			t.Fatalf("Acquire after Close: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Fatalf("closing twice: %v", err)
		}
		if snap := b.snapshot(t); snap.Held != 1 || len(snap.Waiters) != 0 ||
			len(snap.Sessions) != 1 {
			t.Fatalf("left behind: %+v", snap)
		}
	})
}

func TestUnreachableRedisIsNotACapacityError(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1})
		a.link.SetCut(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := a.Acquire(ctx)
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrCapacity) ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Acquire: %v", err)
		}
		if _, err := a.TryAcquire(t.Context()); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("TryAcquire: %v", err)
		}
		a.link.SetCut(false)
		time.Sleep(time.Second)
		a.acquire(t)
	})
}

// The heartbeat does not wait behind the user's own traffic.
func TestBusyClientDoesNotStarveTheHeartbeat(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1, TTL: time.Second})
		p := a.acquire(t)
		var wg sync.WaitGroup
		for range 50 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				a.client.BLPop(t.Context(), 20*time.Second, "nothing")
			}()
		}
		time.Sleep(10 * time.Second)
		if !p.Held() {
			t.Fatal("the lease was lost although Redis answered")
		}
		wg.Wait()
	})
}

func TestConcurrentUseConservesPermits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const capacity = 4
		var sessions []*session
		for range 3 {
			sessions = append(sessions, w.join(Config{Capacity: capacity, MaxAttempts: -1}))
		}
		var mu sync.Mutex
		inside, most := 0, 0
		var wg sync.WaitGroup
		for i := range 60 {
			s := sessions[i%len(sessions)]
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range subset.Length(4, 10) {
					p, err := s.Acquire(t.Context())
					if err != nil {
						t.Errorf("Acquire: %v", err)
						return
					}
					mu.Lock()
					inside++
					most = max(most, inside)
					mu.Unlock()
					time.Sleep(time.Millisecond)
					mu.Lock()
					inside--
					mu.Unlock()
					if err := p.Release(t.Context()); err != nil {
						t.Errorf("Release: %v", err)
					}
				}
			}()
		}
		wg.Wait()
		if most != capacity {
			t.Errorf("at most %d users at once, want exactly %d", most, capacity)
		}
		synctest.Wait()
		if snap := sessions[0].snapshot(t); snap.Held != 0 || len(snap.Waiters) != 0 {
			t.Errorf("left behind: %+v", snap)
		}
	})
}
