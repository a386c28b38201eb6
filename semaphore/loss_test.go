package semaphore

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// Redis loses all state while its clients live: FLUSHALL, or a restart without persistence.
func TestStateLossDoesNotGrantTwice(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 2, TTL: 3 * time.Second}
		a, b := w.join(cfg), w.join(cfg)
		p, q := a.acquire(t), b.acquire(t)
		time.Sleep(100 * time.Millisecond)
		w.Redis.FlushAll()

		// A newcomer comes first. It must not be granted the permits of a and b.
		c := w.join(cfg)
		if _, err := c.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("granted right after the loss: %v", err)
		}
		if c.snapshot(t).GrantsPausedFor == 0 {
			t.Fatal("grants are not paused")
		}
		time.Sleep(3100 * time.Millisecond)
		if !p.Held() || !q.Held() {
			t.Fatal("holders lost their permits")
		}
		if snap := c.snapshot(t); snap.Held != 2 || snap.GrantsPausedFor != 0 {
			t.Fatalf("permits were not re-asserted: %+v", snap)
		}
		waiting := c.later(t.Context())
		if waiting.IsDone() {
			t.Fatal("over capacity after the loss")
		}
		release(t, p)
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("nothing is granted after the loss: %v", waiting.Err)
		}
	})
}

func TestWaitersSurviveStateLoss(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, TTL: time.Second, MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		p := a.acquire(t)
		waiting := b.later(t.Context())
		w.Redis.FlushAll()
		time.Sleep(3 * time.Second)
		if waiting.IsDone() {
			t.Fatal("granted while a holds the only permit")
		}
		release(t, p)
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("the waiter lost its place: %v", waiting.Err)
		}
	})
}

func TestNewSemaphoreDoesNotPayForStateLoss(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Name: "another", Capacity: 1})
		a.acquire(t)
		b := w.join(Config{Name: "new", Capacity: 1})
		if _, err := b.TryAcquire(t.Context()); err != nil {
			t.Fatalf("the first permit of a new semaphore: %v", err)
		}
	})
}

// A permit was released while Redis had forgotten it. A heartbeat that crossed the release does not
// restore it.
func TestReleaseDuringStateLossStaysReleased(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1, TTL: time.Second, MaxAttempts: -1})
		p := a.acquire(t)
		w.Redis.FlushAll()
		release(t, p)
		synctest.Wait()
		if got := a.snapshot(t).Held; got != 0 {
			t.Fatalf("%d held, want 0", got)
		}
		time.Sleep(1100 * time.Millisecond)
		a.acquire(t)
	})
}

// A Node service on the original library shares the sorted set: its permits count, and expire by
// Redis's clock.
func TestSharesTheSortedSetWithTheOriginal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Prefix: "passbuddy", Name: "db", Capacity: 2, TTL: time.Second,
			MaxAttempts: -1})
		foreign := "7b1c0f0e-2d3a-4c5b-8a69-0123456789ab"
		if _, err := w.Redis.ZAdd("passbuddy-db",
			float64(time.Now().Add(5*time.Second).UnixMilli()), foreign); err != nil {
			t.Fatal(err)
		}
		a.acquire(t)
		waiting := a.later(t.Context())
		if waiting.IsDone() {
			t.Fatal("the original's permit was not counted")
		}
		if snap := a.snapshot(t); snap.Held != 2 || len(snap.Holders) != 2 {
			t.Fatalf("snapshot %+v", snap)
		}
		<-waiting.Done
		if waiting.Err != nil || waiting.Took > 5100*time.Millisecond {
			t.Fatalf("granted after %v: %v, want when the foreign lease expired", waiting.Took,
				waiting.Err)
		}
		members, err := w.Redis.ZMembers("passbuddy-db")
		if err != nil || slices.Contains(members, foreign) || len(members) != 2 {
			t.Fatalf("members %q, %v: the expired foreign permit is still there", members, err)
		}
	})
}

// All keys are in one Cluster slot: that of the first key, or of its hash tag.
func TestAllKeysShareOneSlot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Prefix: "p", Name: "n", Capacity: 1})
		a.acquire(t)
		a.later(t.Context())
		keys := w.Redis.Keys()
		if len(keys) < 5 {
			t.Fatalf("keys %q: the test sees too few keys", keys)
		}
		for _, k := range keys {
			if k != "p-n" && (len(k) < 6 || k[:6] != "{p-n}:") {
				t.Errorf("key %q is outside of the slot", k)
			}
		}
	})
}

// An operator deletes any one key. No session is granted another's permit, and after a while the
// fleet works again.
func TestAnyKeyDeleted(t *testing.T) {
	for _, key := range subset.Of(t, 6, redisscript.NewKeys("passbuddy-semaphore").All()) {
		t.Run(key, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 3, Min: 1, MaxAttempts: -1}
				a, b := w.join(cfg), w.join(cfg)
				pool := a.pool(t)
				pool.Obey = true
				pool.Ask(1)
				p, q := a.acquire(t), b.acquire(t)
				waiting := b.later(t.Context())
				time.Sleep(time.Second)
				w.Redis.Del(key)
				if got, err := a.TryAcquire(t.Context()); err == nil {
					t.Errorf("granted %s although all permits are held", got.ID())
				}
				for range 100 {
					time.Sleep(100 * time.Millisecond)
					if got := a.snapshot(t).Held; got > 3 {
						t.Fatalf("%d held, want at most 3", got)
					}
				}
				if !p.Held() || !q.Held() {
					t.Error("holders lost their permits")
				}
				release(t, p)
				time.Sleep(5 * time.Second)
				if !waiting.IsDone() || waiting.Err != nil {
					t.Errorf("the waiter lost its place: %v", waiting.Err)
				}
			})
		})
	}
}

// After a loss of state, grants resume before a whole lease is over, once all known sessions are
// back.
func TestThePauseEndsEarly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 3, MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		a.acquire(t)
		b.acquire(t)
		time.Sleep(5 * time.Second)
		w.Redis.FlushAll()
		began := time.Now()
		if got := a.acquire(t); !got.Held() {
			t.Error("the permit is not held")
		}
		if took := time.Since(began); took > 3*time.Second || took < 2*time.Second {
			t.Errorf("granted %v after the loss", took)
		}
	})
}

// A session that does not come back may still hold its permits. Then grants stay paused for the
// whole lease.
func TestThePauseWaitsForTheMissing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 3, MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		held := b.acquire(t)
		time.Sleep(5 * time.Second)
		b.link.SetCut(true)
		w.Redis.FlushAll()
		waiting := a.later(t.Context())
		for !waiting.IsDone() {
			time.Sleep(10 * time.Millisecond)
		}
		if held.Held() {
			t.Error("granted while the missing session still trusted its lease")
		}
		if waiting.Err != nil || waiting.Took > 6*time.Second {
			t.Errorf("granted after %[2]v: %[1]v, want within 6s", waiting.Err, waiting.Took)
		}
	})
}

// A name can contain characters that PUBSUB takes for a pattern.
func TestStateLossIsSeenUnderAnyName(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Name: `a[b]*?\c`, Capacity: 1}
		a := w.join(cfg)
		a.acquire(t)
		w.Redis.FlushAll()
		b := w.join(cfg)
		if _, err := b.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Errorf("granted right after the loss: %v", err)
		}
		w.join(Config{Name: "x", Capacity: 1})
		if _, err := w.join(Config{Name: "*", Capacity: 1}).TryAcquire(t.Context()); err != nil {
			t.Errorf("the first permit of a new semaphore: %v", err)
		}
	})
}
