package fleet

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func testSchedule(rate, ramp float64) *schedule {
	return &schedule{random: rand.New(rand.NewPCG(1, 2)), rate: rate, ramp: ramp}
}

// The gaps of a Poisson process are exponential: their deviation is their mean, and 1/e of them
// exceed it.
func TestScheduleIsPoisson(t *testing.T) {
	const n, rate = 100_000, 200.0
	s := testSchedule(rate, 0)
	var sum, squares float64
	var last time.Duration
	long := 0
	for range n {
		at := s.next()
		gap := (at - last).Seconds()
		last = at
		if gap < 0 {
			t.Fatal("an arrival is earlier than the one before it")
		}
		sum += gap
		squares += gap * gap
		if gap > 1/rate {
			long++
		}
	}
	mean := sum / n
	deviation := math.Sqrt(squares/n - mean*mean)
	if math.Abs(mean*rate-1) > 0.02 || math.Abs(deviation*rate-1) > 0.02 {
		t.Errorf("gaps have mean %v and deviation %v, want %v", mean, deviation, 1/rate)
	}
	if share := float64(long) / n; math.Abs(share-1/math.E) > 0.01 {
		t.Errorf("%v of the gaps exceed their mean, want 1/e", share)
	}
}

// In a ramp the rate grows evenly: half as many operations arrive as without it, three quarters of
// them in its second half.
func TestScheduleRamps(t *testing.T) {
	s := testSchedule(10_000, 4)
	var first, second, after int
	for {
		switch at := s.next(); {
		case at < 2*time.Second:
			first++
		case at < 4*time.Second:
			second++
		case at < 5*time.Second:
			after++
		default:
			for _, c := range []struct {
				got, want int
			}{{first, 5_000}, {second, 15_000}, {after, 10_000}} {
				if math.Abs(float64(c.got)/float64(c.want)-1) > 0.05 {
					t.Errorf(
						"%d, %d and %d arrivals in the ramp's halves and the second after, want "+
							"5000, 15000, 10000", first, second, after)
					break
				}
			}
			return
		}
	}
}

// fakePool is a pool of size connections; each operation takes the given time.
type fakePool struct {
	slots chan struct{}
	takes time.Duration
	most  atomic.Int64 // operations at once
	now   atomic.Int64
	fails error
}

func newFakePool(size int, takes time.Duration) *fakePool {
	return &fakePool{slots: make(chan struct{}, size), takes: takes}
}

func (p *fakePool) checkout(ctx context.Context) (connection, error) {
	select {
	case p.slots <- struct{}{}:
		return fakeConnection{p}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *fakePool) close() {}

type fakeConnection struct{ *fakePool }

func (c fakeConnection) operate(ctx context.Context, _ Operation) error {
	c.most.Store(max(c.most.Load(), c.now.Add(1)))
	defer c.now.Add(-1)
	if !sleep(ctx, c.takes) {
		return ctx.Err()
	}
	return c.fails
}

func (c fakeConnection) giveBack() { <-c.slots }

func testWorker(p pool, cfg Config, s Span) *worker {
	return &worker{cfg: cfg, pool: p, connects: newConnectCounter(), window: newWindow(s),
		wait: NewLatency(), total: NewLatency(), failures: make(map[string]int64)}
}

// runWorker runs w as work does, to the end of its window, or until stopAfter if that is earlier.
func runWorker(w *worker, stopAfter time.Duration) {
	stop, cancel := context.WithCancel(context.Background())
	defer cancel()
	if stopAfter > 0 {
		defer time.AfterFunc(stopAfter, cancel).Stop()
	}
	w.run(stop, discardReports())
}

// A pool that stalls for a second delays all operations that arrive meanwhile, and each delay
// counts from the operation's due time. A loop that waited for the first operation would find only
// one slow operation.
func TestOpenLoopCountsFromTheIntendedStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		p := newFakePool(1, 0)
		w := testWorker(p, Config{Load: Load{Rate: 1000, MaxOutstanding: 100_000},
			Drain: time.Second}, Span{Begin: now, From: now, Until: now.Add(2 * time.Second)})
		p.slots <- struct{}{} // taken for the first second
		time.AfterFunc(time.Second, func() { <-p.slots })
		runWorker(w, 0)
		total := float64(w.total.Count())
		if math.Abs(total-2000) > 200 {
			t.Fatalf("%v operations, want about 2,000", total)
		}
		// Half of the operations arrived during the stall, and waited for half a second on average.
		for percent, want := range map[float64]time.Duration{40: 0, 75: 500 * time.Millisecond,
			100: time.Second} {
			if got := w.total.Percentile(percent); (got - want).Abs() > 60*time.Millisecond {
				t.Errorf("p%v is %v, want about %v", percent, got, want)
			}
			if got := w.wait.Percentile(percent); (got - want).Abs() > 60*time.Millisecond {
				t.Errorf("p%v of the waits is %v, want about %v", percent, got, want)
			}
		}
		if w.counts.Shed != 0 || w.counts.Unfinished != 0 || w.counts.Errors() != 0 {
			t.Errorf("%+v", w.counts)
		}
	})
}

// A generator that is late by half a second starts all overdue operations at once. Each counts from
// its due time.
func TestLateArrivalsCountFromTheIntendedStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now().Add(-500 * time.Millisecond)
		w := testWorker(newFakePool(10_000, 0),
			Config{Load: Load{Rate: 1000, MaxOutstanding: 10_000}},
			Span{Begin: begin, From: begin, Until: begin.Add(time.Second)})
		runWorker(w, 0)
		for percent, want := range map[float64]time.Duration{25: 0, 75: 250 * time.Millisecond,
			100: 500 * time.Millisecond} {
			if got := w.total.Percentile(percent); (got - want).Abs() > 60*time.Millisecond {
				t.Errorf("p%v is %v, want about %v", percent, got, want)
			}
		}
	})
}

// Operations in flight are bounded, and each arrival is either done, shed or unfinished.
func TestOpenLoopShedsBeyondItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		p := newFakePool(100, time.Hour) // nothing ever ends
		w := testWorker(p, Config{Load: Load{Rate: 1000, MaxOutstanding: 30}, Drain: time.Second},
			Span{Begin: now, From: now, Until: now.Add(time.Second)})
		runWorker(w, 0)
		if got := p.most.Load(); got != 30 {
			t.Errorf("%d operations at once, want 30", got)
		}
		c := w.report().Counts
		if c.Operations != 0 || c.Unfinished != 30 || c.Shed < 800 || c.Shed > 1200 {
			t.Errorf("%+v, want 30 unfinished and about 970 shed", c)
		}
		if got := w.total.Percentile(100); got < 1900*time.Millisecond ||
			got > 2010*time.Millisecond || w.total.Count() != 30 {
			t.Errorf("%d latencies up to %v, want 30 up to the end of the drain, 2s",
				w.total.Count(), got)
		}
	})
}

// An operation that ends after the window counts in the percentiles with its whole time, but not in
// the throughput.
func TestOpenLoopWaitsForTheLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		w := testWorker(newFakePool(1000, 600*time.Millisecond),
			Config{Load: Load{Rate: 100, MaxOutstanding: 1000}, Drain: time.Second},
			Span{Begin: now, From: now, Until: now.Add(time.Second)})
		runWorker(w, 0)
		ended, timed := w.counts.Operations, w.total.Count()
		if ended >= timed || timed < 60 || w.counts.Unfinished != 0 {
			t.Errorf("%d operations ended in the window, %d were timed, %d unfinished", ended,
				timed, w.counts.Unfinished)
		}
		if got := w.total.Percentile(0.1); got < 600*time.Millisecond {
			t.Errorf("an operation of 600ms took %v", got)
		}
	})
}

func TestOpenLoopCountsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		p := newFakePool(10, time.Millisecond)
		p.fails = errors.New("broken")
		w := testWorker(p, Config{Load: Load{Rate: 100, MaxOutstanding: 10}},
			Span{Begin: now, From: now, Until: now.Add(time.Second)})
		runWorker(w, 0)
		if w.counts.Failed == 0 || w.counts.Operations != 0 ||
			w.failures["broken"] != w.counts.Failed {
			t.Errorf("%+v, %v", w.counts, w.failures)
		}
	})
}

// A goroutine that pauses for 50 ms on average between operations of 2 ms does about 19 operations
// a second.
func TestPausesBetweenOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		w := testWorker(newFakePool(8, 2*time.Millisecond),
			Config{Goroutines: 8, Load: Load{Pause: 50 * time.Millisecond}},
			Span{Begin: now, From: now, Until: now.Add(100 * time.Second)})
		runWorker(w, 0)
		if got, want := float64(w.counts.Operations), 8*100/0.052; math.Abs(got/want-1) > 0.05 {
			t.Errorf("%v operations, want about %v", got, want)
		}
		if got := w.total.Percentile(100); got < 2*time.Millisecond || got > 3*time.Millisecond {
			t.Errorf("the pause is in the latency: %v", got)
		}
	})
}

// A worker that is told to leave finishes the operations in flight and those that wait, and counts
// them.
func TestGracefulWorkersFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		span := Span{Begin: now, From: now, Until: now.Add(time.Minute)}
		w := testWorker(newFakePool(1, 300*time.Millisecond),
			Config{Goroutines: 3, Graceful: true, Drain: 2 * time.Second}, span)
		runWorker(w, time.Second) // 3 have ended, one is under way, two wait
		if w.counts.Operations != 6 || w.counts.Failed != 0 || w.total.Count() != 6 {
			t.Errorf("%+v and %d latencies, want that all 6 ended", w.counts, w.total.Count())
		}
		w = testWorker(newFakePool(1, 300*time.Millisecond),
			Config{Goroutines: 3, Graceful: true, Drain: 400 * time.Millisecond}, span)
		runWorker(w, time.Second) // until 1.4 s, so one more ends
		if w.counts.Operations != 4 || w.counts.Failed != 2 ||
			w.failures[errAbandoned.Error()] != 2 {
			t.Errorf("%+v, %v, want 4 that ended and 2 that were abandoned", w.counts, w.failures)
		}
	})
}

// At the end of the run a graceful worker counts no more than any other.
func TestGracefulWorkersEndWithTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		w := testWorker(newFakePool(1, 300*time.Millisecond),
			Config{Goroutines: 3, Graceful: true, Drain: 100 * time.Millisecond},
			Span{Begin: now, From: now, Until: now.Add(time.Second)})
		runWorker(w, 0)
		if w.counts.Operations != 3 || w.counts.Failed != 0 {
			t.Errorf("%+v, want the 3 that ended in the window, and no failure", w.counts)
		}
	})
}
