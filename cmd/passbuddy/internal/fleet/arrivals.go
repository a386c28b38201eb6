package fleet

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// schedule is a Poisson process: the gaps between arrivals are independent and exponential. Nobody who is late moves it,
// because each arrival follows from the one before and not from the clock.
type schedule struct {
	random  *rand.Rand
	rate    float64 // arrivals per second
	seconds float64 // of the last arrival, since the begin
}

// next is when the next arrival is, since the begin.
func (s *schedule) next() time.Duration {
	s.seconds += s.random.ExpFloat64() / s.rate
	return time.Duration(s.seconds * float64(time.Second))
}

// arrive starts an operation for each arrival until the window ends or stop is done, and waits until all have ended. An
// arrival that comes late, because the machine was busy, still counts from when it was to come.
func (w *worker) arrive(stop, queries context.Context) {
	var outstanding sync.WaitGroup
	defer outstanding.Wait()
	slots := make(chan struct{}, w.cfg.Load.MaxOutstanding)
	s := &schedule{random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), rate: w.cfg.Load.Rate}
	for {
		intended := w.window.begin.Add(s.next())
		if w.window.ends() && !intended.Before(w.window.until) {
			return
		}
		if !sleep(stop, time.Until(intended)) {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			w.shed(intended)
			continue
		}
		outstanding.Go(func() {
			defer func() { <-slots }()
			if _, err := w.operate(intended, stop, queries); err != nil {
				w.fail(err)
			}
		})
	}
}

// shed counts an arrival for which there was no room.
func (w *worker) shed(intended time.Time) {
	if !w.window.contains(intended) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Shed++
}

// sleep returns after d, or false as soon as ctx is done.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
