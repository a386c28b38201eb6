package allotment_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

func TestBusyProcessesConvergeToTheirWeights(t *testing.T) {
	type weighted struct {
		capacity int
		weights  []int
		want     []int
	}
	for _, c := range subset.Of(t, 1, []weighted{
		{20, []int{3, 1}, []int{15, 5}},
		{20, []int{1, 3, 1}, []int{4, 12, 4}},
		{10, []int{2, 2, 1}, []int{4, 4, 2}},
		{3, []int{100, 1}, []int{2, 1}}, // the lightest has one, whatever the others weigh
	}) {
		t.Run(fmt.Sprint(c.weights), func(t *testing.T) {
			inFleet(t, c.capacity, func(t *testing.T, fl *fleet) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				var wg sync.WaitGroup
				var fleet []*process
				for _, weight := range c.weights {
					p := fl.startAs(semaphore.Config{Weight: weight}, allotment.Options{})
					fleet = append(fleet, p)
					p.load(ctx, &wg, 40, 5*time.Millisecond)
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(time.Second)
				var owned []int
				for _, p := range fleet {
					owned = append(owned, p.Figures().Owned)
				}
				if !slices.Equal(owned, c.want) {
					t.Errorf("shares %v of %d, want %v", owned, c.capacity, c.want)
				}
				_, _, connects := fl.witness()
				time.Sleep(3 * time.Second)
				if _, _, after := fl.witness(); after != connects {
					t.Errorf("%d connects after the shares were settled", after-connects)
				}
				wg.Wait()
			})
		})
	}
}

// In rotation, too, the weight counts: as time.
func TestRotationSharesByWeight(t *testing.T) {
	subset.Sometimes(t, 2)
	inFleet(t, 2, func(t *testing.T, fl *fleet) {
		ctx, cancel := context.WithTimeout(t.Context(), subset.Length(7*time.Second, 20*time.Second))
		defer cancel()
		var wg sync.WaitGroup
		var fleet []*process
		for _, weight := range []int{3, 1, 1, 1} {
			p := fl.startAs(semaphore.Config{Weight: weight}, allotment.Options{})
			fleet = append(fleet, p)
			p.load(ctx, &wg, 4, time.Millisecond)
		}
		wg.Wait()
		for i, p := range fleet[1:] {
			if ratio := float64(fleet[0].ops) / float64(p.ops); ratio < 1.5 || ratio > 4.5 {
				t.Errorf("%d operations of weight 3, %d of process %d, of weight 1", fleet[0].ops, p.ops, i+1)
			}
			if p.max > 2*time.Second {
				t.Errorf("process %d waited %v", i+1, p.max)
			}
		}
	})
}

// A process with a minimum joins busy ones. It has its minimum as soon as they return connections,
// and keeps it while it is idle.
func TestMinIsServedAndKept(t *testing.T) {
	inFleet(t, 10, func(t *testing.T, fl *fleet) {
		ctx, cancel := context.WithTimeout(t.Context(), subset.Length(2500*time.Millisecond, 5*time.Second))
		defer cancel()
		var wg sync.WaitGroup
		for range 2 {
			fl.start(allotment.Options{}).load(ctx, &wg, 40, 5*time.Millisecond)
		}
		time.Sleep(time.Second)
		p := fl.startAs(semaphore.Config{Min: 4}, allotment.Options{})
		for range 4 {
			wg.Go(func() {
				if err := p.use(t.Context(), 50*time.Millisecond); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Second)
		if f := p.Figures(); f.Idle != 4 {
			t.Errorf("%+v, want 4 idle: the minimum", f)
		}
		if p.max > 50*time.Millisecond {
			t.Errorf("waited %v for what its minimum lacked", p.max)
		}
		wg.Wait()
	})
}

func TestMaxBoundsAProcess(t *testing.T) {
	inFleet(t, 10, func(t *testing.T, fl *fleet) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		p := fl.startAs(semaphore.Config{Max: 3}, allotment.Options{})
		p.load(ctx, &wg, 20, 5*time.Millisecond)
		wg.Wait()
		if _, peak, connects := fl.witness(); peak != 3 || connects != 3 {
			t.Errorf("%d backends at the peak and %d connects, want 3", peak, connects)
		}
		if p.ops < 1100 {
			t.Errorf("%d operations of 5ms on 3 connections in 2s", p.ops)
		}
	})
}
