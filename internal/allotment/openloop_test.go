package allotment_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// An arrivals is an open loop in fake time: operations arrive as a Poisson process and wait for
// nobody. So a test sees what a policy of moves does to waits and connects, without what a machine
// adds.
type arrivals struct {
	load   float64 // of the capacity
	hold   time.Duration
	skewed bool // Zipf, s = 1, over the processes; else even
}

func (o arrivals) String() string {
	demand := "even"
	if o.skewed {
		demand = "skewed"
	}
	return fmt.Sprintf("%v/%s/%.0f%%", o.hold, demand, 100*o.load)
}

// outcome is how long callers waited for a checkout, connects included.
type outcome struct {
	waits    []time.Duration // in order
	connects int             // after the start
}

func (o outcome) quantile(q float64) time.Duration {
	return o.waits[min(len(o.waits)-1, int(q*float64(len(o.waits))))]
}

// arrive lets operations arrive at 8 processes on 20 permits, for as long as measured after 3s.
func (fl *fleet) arrive(o arrivals, measured time.Duration) outcome {
	const processes, start = 8, 3 * time.Second
	t := fl.t
	ctx, cancel := context.WithTimeout(t.Context(), start+measured)
	defer cancel()
	part := make([]float64, processes)
	sum := 0.0
	for i := range part {
		part[i] = 1
		if o.skewed {
			part[i] = 1 / float64(i+1)
		}
		sum += part[i]
	}
	began := time.Now()
	var mu sync.Mutex
	var out outcome
	var wg sync.WaitGroup
	for i := range part {
		p := fl.start(allotment.Options{})
		rate := o.load * float64(fl.capacity) / o.hold.Seconds() * part[i] / sum
		r := rand.New(rand.NewPCG(uint64(i), 7))
		wg.Go(func() {
			for {
				time.Sleep(time.Duration(r.ExpFloat64() / rate * float64(time.Second)))
				if ctx.Err() != nil {
					return
				}
				arrived := time.Now()
				wg.Go(func() {
					if err := p.use(context.WithoutCancel(ctx), o.hold); err != nil {
						t.Errorf("use: %v", err)
						return
					}
					if arrived.Sub(began) > start {
						mu.Lock()
						out.waits = append(out.waits, time.Since(arrived)-o.hold)
						mu.Unlock()
					}
				})
			}
		})
	}
	time.Sleep(start)
	_, _, before := fl.witness()
	time.Sleep(measured)
	_, _, after := fl.witness()
	wg.Wait()
	out.connects = after - before
	slices.Sort(out.waits)
	return out
}

// Between processes of one fleet permits follow the demand: no caller waits for long while others
// have connections to spare, and permits do not move to and fro. An uncapped pool would let a
// caller wait for nothing but a connect of 5ms, now and then.
func TestOpenLoopNeitherStarvesNorThrashes(t *testing.T) {
	subset.Sometimes(t, 2)
	const ms = time.Millisecond
	type openLoop struct {
		connect time.Duration
		arrivals
		p99      time.Duration // of the waits
		connects int           // in 3s
	}
	for _, c := range subset.Of(t, 1, []openLoop{
		{5 * ms, arrivals{0.3, 2 * ms, true}, 10 * ms, 15},
		{5 * ms, arrivals{0.6, 2 * ms, true}, 25 * ms, 150},
		{5 * ms, arrivals{0.3, 20 * ms, false}, 30 * ms, 40},
		{5 * ms, arrivals{0.6, 20 * ms, true}, 60 * ms, 300},
		// The largest process needs 7 of the 20, and its part is 2: where permits did not follow
		// the use, it fell behind by 2s and more.
		{30 * ms, arrivals{0.75, 2 * ms, true}, 1200 * ms, 120},
		{100 * ms, arrivals{0.6, 2 * ms, true}, 100 * ms, 20},
	}) {
		t.Run(fmt.Sprintf("connect=%v/%v", c.connect, c.arrivals), func(t *testing.T) {
			inFleet(t, 20, func(t *testing.T, fl *fleet) {
				fl.connect = c.connect
				got := fl.arrive(c.arrivals, 3*time.Second)
				t.Logf("waits: p50 %v, p99 %v, p99.9 %v; %d connects in 3s, %d operations",
					got.quantile(0.5), got.quantile(0.99), got.quantile(0.999), got.connects, len(got.waits))
				if p99 := got.quantile(0.99); p99 > c.p99 {
					t.Errorf("p99 of the waits is %v, want at most %v", p99, c.p99)
				}
				if got.connects > c.connects {
					t.Errorf("%d connects in 3s, want at most %d", got.connects, c.connects)
				}
			})
		})
	}
}
