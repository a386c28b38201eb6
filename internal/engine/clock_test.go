package engine

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A session slept for an hour, and its clock with it, so it finds Redis's clock an hour ahead. The
// other sessions know the right time.
func TestASleeperDoesNotTurnTheClockBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1}), w.join(Config{Capacity: 1})
		time.Sleep(10 * time.Second)
		var slept atomic.Bool
		b.beforeBatches(func(cmd redis.Cmder) {
			args := cmd.Args()
			at := 3 + args[2].(int) // Exchange.Expected, the first behind the keys
			if !slept.Swap(true) {
				args[at] = args[at].(int64) - time.Hour.Milliseconds()
			}
		})
		b.acquire(t)
		if !slept.Load() {
			t.Fatal("bug in the test: nothing was sent")
		}
		// The skew must be below a heartbeat interval, the time since the others' last heartbeat,
		// because it lengthens the leases.
		if skew, _ := strconv.Atoi(w.Redis.HGet(keyBase+"meta", "skew")); skew < 0 || skew > 2000 {
			t.Errorf("the clock's skew is %d ms, want 0 to 2000", skew)
		}
		if a.state(t).Held != 1 {
			t.Error("the permit is not held")
		}
	})
}

// The clock steps by less than a lease, and a newcomer is the first to see the step.
func TestNewcomerAfterStepShorterThanTTL(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, Patience: forever}
		a, b := w.join(cfg), w.join(cfg)
		p := a.acquire(t)
		time.Sleep(1 * time.Second)
		if err := b.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		w.Redis.SetTime(time.Now().Add(3800 * time.Millisecond))
		c := w.join(cfg)
		q, err := c.try(t.Context())
		if err == nil && p.Held() && q.Held() {
			t.Error("two hold the only permit")
		}
	})
}
