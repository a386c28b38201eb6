package semaphore

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

func TestLeaveAfterClockStep(t *testing.T) {
	for _, how := range []string{"leave", "capacity"} {
		t.Run(how, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 1, MaxAttempts: -1}
				a, b, c := w.join(cfg), w.join(cfg), w.join(cfg)
				p := a.acquire(t)
				time.Sleep(100 * time.Millisecond)
				w.Redis.SetTime(time.Now().Add(time.Hour))
				if how == "leave" {
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
				} else if err := b.SetCapacity(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				q, err := c.TryAcquire(t.Context())
				if err == nil && p.Held() && q.Held() {
					t.Error("two sessions hold the only permit")
				}
			})
		})
	}
}

func TestStepBelowSTEP(t *testing.T) {
	t.Run("TTL 1s", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			cfg := Config{Capacity: 1, MaxAttempts: -1, TTL: time.Second}
			a, b := w.join(cfg), w.join(cfg)
			p := a.acquire(t)
			time.Sleep(100 * time.Millisecond)
			w.Redis.SetTime(time.Now().Add(950 * time.Millisecond))
			q, err := b.TryAcquire(t.Context())
			if err == nil && p.Held() && q.Held() {
				t.Error("two sessions hold the only permit")
			}
		})
	})
	t.Run("default TTL, holder cut off", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			cfg := Config{Capacity: 1, MaxAttempts: -1}
			a, b := w.join(cfg), w.join(cfg)
			p := a.acquire(t)
			a.link.SetCut(true)
			time.Sleep(4200 * time.Millisecond)
			w.Redis.SetTime(time.Now().Add(950 * time.Millisecond))
			q, err := b.TryAcquire(t.Context())
			if err == nil && p.Held() && q.Held() {
				t.Error("two sessions hold the only permit")
			}
		})
	})
}

func TestADriftingCountDoesNotHideALostSet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 4, MaxAttempts: -1}
		a, b, c := w.join(cfg), w.join(cfg), w.join(cfg)
		for i := range 2 { // clients of the original hold two permits, and crash
			_, _ = w.Redis.ZAdd("passbuddy-semaphore",
				float64(time.Now().Add(time.Second).UnixMilli()),
				fmt.Sprintf("7b1c0f0e-2d3a-4c5b-8a69-0123456789a%d", i))
		}
		p, q := a.acquire(t), b.acquire(t)
		time.Sleep(5 * time.Second)
		t.Logf("count is %s, 2 permits are held",
			w.Redis.HGet("{passbuddy-semaphore}:meta", "count"))
		w.Redis.Del("passbuddy-semaphore")
		n := 0
		for {
			if _, err := c.TryAcquire(t.Context()); err != nil {
				break
			}
			n++
		}
		if n > 2 && p.Held() && q.Held() {
			t.Errorf("granted %d of 4 while 2 others are held", n)
		}
	})
}

func TestDeadWaitersDoNotFillTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, MaxAttempts: -1, MaxWaiters: 2}
		a := w.join(cfg)
		a.acquire(t) // held by a leader, for days
		for range 2 {
			d := w.join(cfg)
			d.later(t.Context())
			d.link.SetCut(true)
		}
		since := subset.Length(time.Minute, time.Hour)
		time.Sleep(since)
		b := w.join(cfg)
		if got := b.later(t.Context()); got.IsDone() {
			t.Errorf("%v after they died: %v; %d waiters", since, got.Err,
				len(a.snapshot(t).Waiters))
		}
	})
}

func TestARequestWithdrawnDuringAnOutageLeavesTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		a.acquire(t)
		ctx, cancel := context.WithCancel(t.Context())
		q := b.later(ctx)
		b.link.SetCut(true)
		cancel()
		time.Sleep(6 * time.Second)
		b.link.SetCut(false)
		if !q.IsDone() {
			t.Fatal("bug in the test: the cancelled waiter has not returned")
		}
		since := subset.Length(time.Minute, time.Hour)
		time.Sleep(since)
		if got := len(a.snapshot(t).Waiters); got != 0 {
			t.Errorf("%d waiters in Redis %v later", got, since)
		}
	})
}
