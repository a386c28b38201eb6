package semaphore

import (
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
)

// The head of the queue wants two permits, and one is free: a dead session still has the lease of
// the other. The waiter asks again neither in a busy loop nor too late.
func TestBigHeadSpins(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 3, TTL: time.Minute, MaxAttempts: -1}
		a, b, d := w.join(cfg), w.join(cfg), w.join(cfg)
		b.acquire(t)
		d.acquire(t)
		d.link.SetCut(true)
		began := time.Now()
		big := bubble.Later(func() ([]*Permit, error) { return a.AcquireN(t.Context(), 2) })
		time.Sleep(61*time.Second - time.Since(began)) // one second after the end of d's lease
		n := w.Redis.CommandCount()
		time.Sleep(time.Second)
		if n = w.Redis.CommandCount() - n; n > 20 {
			t.Errorf("%d commands in a second: a busy loop", n)
		}
		<-big.Done
		if big.Err != nil {
			t.Error(big.Err)
		}
		if big.Took > time.Minute+time.Second/2 {
			t.Errorf("granted %v after the lease in the way was over; RetryInterval is 500ms",
				big.Took-time.Minute)
		}
	})
}
