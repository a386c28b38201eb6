package allotment_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

// These tests count moves, which is connects: a permit moves when its holder closes a connection
// and another opens one. Time is fake, so a connect takes what it takes whatever the machine does.

// crowd starts processes of g goroutines each that use connections for hold, and pause for an
// exponential time between.
func (fl *fleet) crowd(ctx context.Context, wg *sync.WaitGroup, processes, g int, hold, pause time.Duration) []*process {
	var all []*process
	for i := range processes {
		p := fl.start(allotment.Options{})
		all = append(all, p)
		for j := range g {
			r := rand.New(rand.NewPCG(uint64(i), uint64(j)))
			wg.Go(func() {
				for ctx.Err() == nil {
					if pause > 0 {
						time.Sleep(time.Duration(r.ExpFloat64() * float64(pause)))
					}
					if err := p.use(context.WithoutCancel(ctx), hold); err != nil {
						fl.t.Errorf("use: %v", err)
						return
					}
				}
			})
		}
	}
	return all
}

func total(all []*process) (ops int) {
	for _, p := range all {
		p.fl.mu.Lock()
		ops += p.ops
		p.fl.mu.Unlock()
	}
	return ops
}

// With demand far below the capacity, and a permit for each process, the fleet comes to rest,
// whatever a connect costs. A caller that finds its process's connections busy for a moment is
// served by the next return.
func TestOrdinaryTrafficComesToRest(t *testing.T) {
	type fleetOf struct {
		processes, goroutines int
		connect               time.Duration
	}
	for _, c := range subset.Of(t, 2, []fleetOf{
		{8, 8, 5 * time.Millisecond}, {12, 8, 5 * time.Millisecond}, {15, 4, 5 * time.Millisecond}, {12, 8, 50 * time.Millisecond}, {15, 4, time.Second},
	}) {
		t.Run(fmt.Sprintf("%dx%d/%v", c.processes, c.goroutines, c.connect), func(t *testing.T) {
			inFleet(t, 20, func(t *testing.T, fl *fleet) {
				fl.connect = c.connect
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				defer cancel()
				var wg sync.WaitGroup
				all := fl.crowd(ctx, &wg, c.processes, c.goroutines, 2*time.Millisecond, 50*time.Millisecond)
				time.Sleep(3 * time.Second)
				_, _, before := fl.witness()
				ops := total(all)
				wg.Wait()
				_, _, after := fl.witness()
				if after-before > 5 {
					t.Errorf("%d connects in 5s, after 3s of the same traffic: more than one a second", after-before)
				}
				// A goroutine makes an operation every 52ms, if it never waits.
				if want := c.processes * c.goroutines * 5000 / 52; total(all)-ops < want*95/100 {
					t.Errorf("%d operations in 5s, want some %d", total(all)-ops, want)
				}
			})
		})
	}
}

// As many processes as permits or fewer, all of them busy: each comes to its share and keeps it. A
// lack of one pool must not recall the permits of the fleet, each for a connect.
func TestBusyFleetSettlesWithoutAStorm(t *testing.T) {
	subset.Sometimes(t, 2)
	type fleetOf struct {
		processes, goroutines int
		connect               time.Duration
	}
	for _, c := range subset.Of(t, 1, []fleetOf{{20, 10, 5 * time.Millisecond}, {20, 10, time.Second}, {15, 10, time.Second}, {8, 40, 20 * time.Millisecond}}) {
		t.Run(fmt.Sprintf("%dx%d/%v", c.processes, c.goroutines, c.connect), func(t *testing.T) {
			inFleet(t, 20, func(t *testing.T, fl *fleet) {
				fl.connect = c.connect
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				defer cancel()
				var wg sync.WaitGroup
				all := fl.crowd(ctx, &wg, c.processes, c.goroutines, 5*time.Millisecond, 0)
				time.Sleep(5 * time.Second)
				ops := total(all)
				wg.Wait()
				if _, _, connects := fl.witness(); connects > 30 {
					t.Errorf("%d connects from the start, for 20 permits, want at most 30",
						connects)
				}
				// 20 permits make 12,000 operations of 5ms in 3s.
				if n := total(all) - ops; n < 12_000*97/100 {
					t.Errorf("%d operations in 3s, want 12,000: permits are out of use", n)
				}
			})
		})
	}
}

// All of a fleet's processes start in one instant, and ask for more than there is. None is granted
// what others need.
func TestColdStartOpensHardlyMoreThanTheCapacity(t *testing.T) {
	inFleet(t, 20, func(t *testing.T, fl *fleet) {
		fl.connect = 5 * time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 8 {
			p := fl.start(allotment.Options{})
			for range 40 {
				wg.Go(func() {
					<-begin
					for ctx.Err() == nil {
						if err := p.use(context.WithoutCancel(ctx), 5*time.Millisecond); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		close(begin)
		time.Sleep(1900 * time.Millisecond) // at the end some processes are done before others
		defer wg.Wait()
		if _, _, connects := fl.witness(); connects > 22 {
			t.Errorf("%d connects for 20 permits, want at most 22", connects)
		}
	})
}

// More processes than permits take turns at a pace that follows what a connect costs, and a process
// waits no longer than the documented formula says: Q turns, each a cycle / C after the one before,
// then the operation under way and a move.
func TestRotationIsPaced(t *testing.T) {
	subset.Sometimes(t, 2)
	type rotation struct {
		connect time.Duration
		inUse   float64 // of 6 permits, at least
		cycle   time.Duration
		settles time.Duration
	}
	for _, c := range subset.Of(t, 1, []rotation{
		{8 * time.Millisecond, 5.4, 250 * time.Millisecond, 2 * time.Second}, // 20 times what a move costs
		{200 * time.Millisecond, 5.2, 2 * time.Second, 8 * time.Second},      // no pool is to wait longer than 2s
		{time.Second, 4.8, 6200 * time.Millisecond, 15 * time.Second},        // 2s would spend more than a sixth of the permits' time on moves
	}) {
		t.Run(c.connect.String(), func(t *testing.T) {
			const capacity, processes = 6, 12 // Q / C is 1
			inFleet(t, capacity, func(t *testing.T, fl *fleet) {
				fl.connect = c.connect
				measured := max(2*c.cycle, 2*time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), c.settles+measured+time.Second)
				defer cancel()
				var wg sync.WaitGroup
				all := fl.crowd(ctx, &wg, processes, 2, 50*time.Millisecond, 0)
				time.Sleep(c.settles)
				ops := total(all)
				_, _, before := fl.witness()
				for _, p := range all {
					fl.mu.Lock()
					p.max = 0
					fl.mu.Unlock()
				}
				time.Sleep(measured)
				_, _, connects := fl.witness()
				inUse := float64(total(all)-ops) * 0.05 / measured.Seconds()
				wg.Wait()
				t.Logf("%.2f of %d permits in use, %d connects in %v", inUse, capacity, connects-before, measured)
				if inUse < c.inUse {
					t.Errorf("%.2f of %d permits in use, want %.2f", inUse, capacity, c.inUse)
				}
				// The pool that is served last waits for the turns before it, an operation and a
				// move.
				longest := c.cycle + c.cycle/4 + 2*c.connect + 100*time.Millisecond
				for i, p := range all {
					if p.max > longest {
						t.Errorf("process %d waited %v, the formula says %v at most", i, p.max, longest)
					}
					if p.ops == 0 {
						t.Errorf("process %d made no operation", i)
					}
				}
			})
		})
	}
}

// A recall whose need has gone is taken back: its holder keeps the connection, whether the waiter
// gave up or was served otherwise.
func TestRecallIsWithdrawn(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, fl *fleet) {
		a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
		var wg sync.WaitGroup
		use := func() {
			if err := a.use(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
		}
		wg.Go(use)
		wg.Go(use)
		time.Sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		wg.Go(func() {
			if err := b.use(ctx, 0); !errors.Is(err, semaphore.ErrCapacity) {
				t.Errorf("%v, want at capacity: both connections of the other are busy for a second", err)
			}
		})
		time.Sleep(100 * time.Millisecond)
		if f := a.Figures(); f.Owed != 1 {
			t.Errorf("%+v: want one recalled for the waiter", f)
		}
		time.Sleep(300 * time.Millisecond)
		if f := a.Figures(); f.Owed != 0 {
			t.Errorf("%+v: want nothing recalled: nobody waits any more", f)
		}
		wg.Wait()
		synctest.Wait()
		if f := a.Figures(); f.Idle != 2 {
			t.Errorf("%+v: want both connections kept", f)
		}
		if _, _, connects := fl.witness(); connects != 2 {
			t.Errorf("%d connects, want 2", connects)
		}
	})
}

// A process alone among idle ones has all there is soon: its even part at once, and the rest when
// nobody else has asked for a moment.
func TestLoneProcessHasAllSoon(t *testing.T) {
	inFleet(t, 20, func(t *testing.T, fl *fleet) {
		for range 7 {
			fl.start(allotment.Options{})
		}
		p := fl.start(allotment.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		p.load(ctx, &wg, 40, 5*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		if f := p.Figures(); f.Owned != 20 {
			t.Errorf("%+v: want all 20 permits after 100ms", f)
		}
		wg.Wait()
	})
}
