package bench

import (
	"context"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// change describes how a fleet changes under load. Each worker has a slot. With a static split each
// slot has a part of the cap.
type change struct {
	name, title string
	before      int // workers at the start
	slots       int // the most workers at once
	steps       []step
	goroutines  int // of each worker
}

// step is one worker that joins, then one that leaves, each given by its slot; -1 is none.
type step struct{ join, leave int }

var (
	rollingDeploy = &change{
		name: "rolling deploy", title: "8 processes replaced one by one",
		before: 8, slots: 9, steps: deploySteps(8), goroutines: 10,
	}
	scaleOut = &change{
		name: "scale-out", title: "from 4 to 16 processes",
		before: 4, slots: 16, steps: scaleSteps(4, 16), goroutines: 10,
	}
	scaleIn = &change{
		name: "scale-in", title: "from 16 to 4 processes",
		before: 16, slots: 16, steps: scaleSteps(16, 4), goroutines: 10,
	}
)

// deploySteps replaces n workers: for each, a new one joins in the free slot, and then the old one
// leaves its slot.
func deploySteps(n int) (steps []step) {
	free := n
	for old := range n {
		steps = append(steps, step{join: free, leave: old})
		free = old
	}
	return steps
}

// scaleSteps lets workers join or leave until there are n.
func scaleSteps(from, n int) (steps []step) {
	for slot := from; slot < n; slot++ {
		steps = append(steps, step{join: slot, leave: -1})
	}
	for slot := from - 1; slot >= n; slot-- {
		steps = append(steps, step{join: -1, leave: slot})
	}
	return steps
}

// times returns when the steps happen in a measured time of d: evenly in its second and third
// quarter. The first quarter shows the steady state.
func (c *change) times(d time.Duration) (times []time.Duration) {
	for i := range c.steps {
		times = append(times, d/4+d/2*time.Duration(i)/time.Duration(len(c.steps)))
	}
	return times
}

// apply changes the fleet f, whose workers are in the first slots, while it works in span. configs
// has one for each slot.
func (c *change) apply(
	ctx context.Context, f *fleet.Fleet, configs []fleet.Config, span fleet.Span,
) error {
	inSlot := make(map[int]int) // a slot's worker, by its number in the fleet
	for slot := range c.before {
		inSlot[slot] = slot
	}
	started := c.before
	times := c.times(span.Until.Sub(span.From))
	for i, s := range c.steps {
		if err := waitUntil(ctx, span.From.Add(times[i])); err != nil {
			return err
		}
		if s.join >= 0 {
			if err := f.Join(ctx, configs[s.join], span); err != nil {
				return err
			}
			inSlot[s.join] = started
			started++
		}
		if s.leave >= 0 {
			if err := f.Leave(inSlot[s.leave]); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitUntil returns at t, or a little later on a machine that is busy.
func waitUntil(ctx context.Context, t time.Time) error {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
