package fleet

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// schedule is a Poisson process: the gaps between arrivals are independent and exponential. A late
// operation does not shift the schedule, because each arrival follows from the one before and not
// from the clock.
type schedule struct {
	random  *rand.Rand
	rate    float64 // arrivals per second
	ramp    float64 // seconds in which the rate grows from 0
	seconds float64 // from the start to the last arrival
}

// next returns the time of the next arrival since the start. During the ramp it leaves out arrivals
// at random, more of them early on. The result is a Poisson process of a lower rate.
func (s *schedule) next() time.Duration {
	for {
		s.seconds += s.random.ExpFloat64() / s.rate
		if s.seconds >= s.ramp || s.random.Float64() < s.seconds/s.ramp {
			return time.Duration(s.seconds * float64(time.Second))
		}
	}
}

// arrive starts an operation for each arrival until the window ends or stop is done, and waits
// until all have ended. An arrival that is late because the machine was busy still counts from its
// due time.
func (w *worker) arrive(stop, queries context.Context) {
	var outstanding sync.WaitGroup
	defer outstanding.Wait()
	slots := make(chan struct{}, w.cfg.Load.MaxOutstanding)
	load := w.cfg.Load
	seed := rand.NewPCG(rand.Uint64(), rand.Uint64())
	s := &schedule{random: rand.New(seed), rate: load.Rate, ramp: load.Ramp.Seconds()}
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
