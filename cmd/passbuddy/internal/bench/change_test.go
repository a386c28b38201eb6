package bench

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// No change takes a slot twice, and the fleet never has more workers than slots.
func TestChangesKeepToTheirSlots(t *testing.T) {
	for _, c := range []struct {
		*change
		after, most int
	}{{rollingDeploy, 8, 9}, {scaleOut, 16, 16}, {scaleIn, 4, 16}} {
		taken := make(map[int]bool)
		for slot := range c.before {
			taken[slot] = true
		}
		most, left := len(taken), 0
		for i, s := range c.steps {
			if s.join >= 0 {
				if taken[s.join] || s.join >= c.slots {
					t.Fatalf("%s, step %d: a worker joins in slot %d", c.name, i, s.join)
				}
				taken[s.join] = true
			}
			most = max(most, len(taken))
			if s.leave >= 0 {
				if !taken[s.leave] {
					t.Fatalf("%s, step %d: a worker leaves slot %d, which is free", c.name, i,
						s.leave)
				}
				delete(taken, s.leave)
				left++
			}
		}
		if len(taken) != c.after || most != c.most || most > c.slots {
			t.Errorf("%s: %d workers at the end and %d at most, want %d and %d", c.name, len(taken),
				most, c.after, c.most)
		}
		if c.change == rollingDeploy && left != 8 {
			t.Errorf("%d workers were replaced, want 8", left)
		}
	}
}

// Each old worker of a deploy leaves once, and only old ones do.
func TestDeployReplacesEveryOldWorker(t *testing.T) {
	var left []int
	for _, s := range deploySteps(3) {
		left = append(left, s.leave)
	}
	if !slices.Equal(left, []int{0, 1, 2}) {
		t.Errorf("workers left slots %v", left)
	}
	if got, want := deploySteps(2), []step{{2, 0}, {0, 1}}; !slices.Equal(got, want) {
		t.Errorf("steps %v, want %v", got, want)
	}
}

func TestChangesLeaveTimeBeforeAndAfter(t *testing.T) {
	times := (&change{steps: make([]step, 4)}).times(8 * time.Second)
	if want := []time.Duration{2 * time.Second, 3 * time.Second, 4 * time.Second,
		5 * time.Second}; !slices.Equal(times, want) {
		t.Errorf("steps at %v, want %v", times, want)
	}
}

func TestPoolsOfAChangingFleet(t *testing.T) {
	for _, c := range []struct {
		*change
		strategy strategy
		want     []int
	}{
		// one more than there are, which the deploy needs
		{rollingDeploy, static, []int{3, 3, 2, 2, 2, 2, 2, 2, 2}},
		{rollingDeploy, perConn, slices.Repeat([]int{10}, 9)},
		{scaleOut, static, []int{2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
	} {
		sp := spec{scenario: scenario{change: c.change,
			shape: shape{c.name, []group{{c.before, c.goroutines}}}}, strategy: c.strategy,
			capacity: 20}
		if got := sp.pools(); !slices.Equal(got, c.want) {
			t.Errorf("%s, %s: pools of %v, want %v", c.name, c.strategy.name, got, c.want)
		}
	}
}

func TestWaitUntilIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := waitUntil(ctx, time.Now().Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := waitUntil(t.Context(), time.Now().Add(-time.Hour)); err != nil {
		t.Errorf("a time in the past: %v", err)
	}
}
