package allotment_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// A pool keeps its only connection until it has repaid its connect. A pool whose dials fail never
// gets there, and must not keep the permit.
func TestFailingDialsGiveThePermitUp(t *testing.T) {
	for _, dial := range []time.Duration{2 * time.Millisecond, 20 * time.Millisecond, time.Second} {
		t.Run(dial.String(), func(t *testing.T) {
			inFleet(t, 1, func(t *testing.T, fl *fleet) {
				a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				defer wg.Wait()
				defer cancel()
				for range 4 {
					wg.Go(func() {
						for ctx.Err() == nil {
							if _, err := a.Enter(ctx, true); err != nil {
								return
							}
							c, err := a.Open(ctx)
							if err != nil {
								a.Exit()
								return
							}
							time.Sleep(dial)
							c.Leave()
							a.Exit()
							c.Gone()
						}
					})
				}
				time.Sleep(2 * time.Second)
				began := time.Now()
				if err := b.use(t.Context(), time.Millisecond); err != nil {
					t.Fatal(err)
				}
				if took, most := time.Since(began), 500*time.Millisecond+2*dial; took > most {
					t.Errorf("the other pool waited %v, want at most %v", took, most)
				}
			})
		})
	}
}

// Each recall has a due time of its own: a withdrawn recall does not hold up the one after it.
func TestRecallAfterKeepIsDueInItsOwnTime(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		p.load(ctx, &wg, 2, 5*time.Millisecond)
		time.Sleep(time.Second)
		_, _, before := fl.witness()
		p.Recall(1, 10*time.Second)
		p.Keep(1)
		p.Recall(1, 100*time.Millisecond)
		time.Sleep(90 * time.Millisecond)
		if _, _, n := fl.witness(); n != before {
			t.Error("given before it was due")
		}
		time.Sleep(60 * time.Millisecond)
		if _, _, n := fl.witness(); n == before { // alone in the fleet, it is granted the permit again, and connects
			t.Errorf("%+v: not given 50ms after it was due", p.Figures())
		}
		wg.Wait()
	})
}

// Processes that join one after the other, for long, do not hold up those that are there.
func TestJoiningEnds(t *testing.T) {
	inFleet(t, 20, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		p.load(ctx, &wg, 40, 5*time.Millisecond)
		for range 40 {
			fl.start(allotment.Options{})
			time.Sleep(25 * time.Millisecond)
		}
		if f := p.Figures(); f.Owned != 20 {
			t.Errorf("%+v: want all 20 permits after a second: nobody else wants any", f)
		}
		wg.Wait()
	})
}

// The mean time between two returns says nothing about operations that take longer than those
// before. Permits are free, so the pool asks for them.
func TestLongOperationsDoNotHideThatCallersWait(t *testing.T) {
	inFleet(t, 20, func(t *testing.T, fl *fleet) {
		fl.connect = time.Second
		p := fl.start(allotment.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		p.load(ctx, &wg, 3, time.Millisecond)
		wg.Wait()
		use := func() {
			if err := p.use(t.Context(), 30*time.Second); err != nil {
				t.Error(err)
			}
		}
		for range 12 {
			wg.Go(use)
		}
		time.Sleep(5 * time.Second)
		if f := p.Figures(); f.Waiting != 0 {
			t.Errorf("%+v: %d callers wait for 5s, a move costs 1s, and permits are free", f, f.Waiting)
		}
		wg.Wait()
	})
}

// A session that counts its connections in again dials nothing. So turns of rotation must not wait
// for the end of its connect.
func TestRotationGoesOnAfterKeepOnLoss(t *testing.T) {
	subset.Sometimes(t, 2)
	inFleet(t, 30, func(t *testing.T, fl *fleet) { // the capacity of the witness: with KeepOnLoss both sides have connections for a while
		fl.capacity = 6
		ctx, cancel := context.WithTimeout(t.Context(), 14*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		var all []*process
		for range 12 {
			p := fl.start(allotment.Options{KeepOnLoss: true})
			all = append(all, p)
			p.load(ctx, &wg, 2, 20*time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		fl.redis.SetError("away")
		time.Sleep(6 * time.Second)
		fl.redis.SetError("")
		time.Sleep(3 * time.Second)
		fl.mu.Lock()
		for _, p := range all {
			p.max, p.ops = 0, 0
		}
		fl.mu.Unlock()
		wg.Wait()
		for i, p := range all {
			if p.ops == 0 {
				t.Errorf("process %d made no operation in 3s, after Redis was back for 3s", i)
			}
		}
	})
}

// As many permits are recalled for a request as it wants, and a permit that is already on its way
// is not recalled again.
func TestRequestForManyRecallsAsMany(t *testing.T) {
	inFleet(t, 20, func(t *testing.T, fl *fleet) {
		a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := a.use(context.WithoutCancel(ctx), time.Duration(50+7*i)*time.Millisecond); err != nil {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(time.Second)
		recalls := func() (n int) {
			const key = "{passbuddy-semaphore}:recalls"
			fields, _ := fl.redis.HKeys(key) // an error is that there is none
			for _, f := range fields {
				if f[0] == '+' {
					m, _ := strconv.Atoi(fl.redis.HGet(key, f))
					n += m
				}
			}
			return n
		}
		before := recalls()
		permits, err := b.sem.AcquireN(t.Context(), 8)
		if err != nil {
			t.Fatal(err)
		}
		if n := recalls() - before; n > 8 {
			t.Errorf("%d permits were recalled for a request for 8", n)
		}
		for _, p := range permits {
			if err := p.Release(t.Context()); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
	})
}

// A process whose only connection is busy for long is given an idle connection of another process,
// within about a second, however often that one was missed there before.
func TestLastIdleConnectionIsGivenHoweverOftenItIsMissed(t *testing.T) {
	for _, busy := range []int{0, 1} { // connections of the holder that are in use beside the idle one
		t.Run(fmt.Sprint(busy), func(t *testing.T) {
			inFleet(t, 2+busy, func(t *testing.T, fl *fleet) {
				fl.connect = 50 * time.Millisecond
				a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
				var wg sync.WaitGroup
				defer wg.Wait()
				long := func(p *process) {
					wg.Go(func() {
						if err := p.use(t.Context(), time.Minute); err != nil {
							t.Error(err)
						}
					})
					time.Sleep(200 * time.Millisecond)
				}
				long(a)
				for range busy {
					long(b)
				}
				for range 8 {
					if err := b.use(t.Context(), time.Millisecond); err != nil {
						t.Fatal(err)
					}
					began := time.Now()
					if err := a.use(t.Context(), time.Millisecond); err != nil {
						t.Fatal(err)
					}
					if took := time.Since(began); took > 1500*time.Millisecond {
						t.Fatalf("waited %v for what lies idle in the other process, want at "+
							"most 1500ms", took)
					}
				}
			})
		})
	}
}
