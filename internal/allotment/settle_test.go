package allotment

import (
	"github.com/passbuddy/passbuddy/internal/engine"
	"testing"
	"testing/synctest"
	"time"
)

// A late timer must not stand in the way of an earlier one: with connects of 1 s the look at the backlog is seconds away, and the next dial is due in
// milliseconds.
func TestSettleInKeepsTheEarlierTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(nil, Options{})
		a.Attach(quiet{})
		began := time.Now()
		a.mu.Lock()
		a.settleIn(4 * time.Second)
		a.settleIn(dialEvery)
		a.settleIn(time.Second)
		if got := a.againAt.Sub(began); got != dialEvery {
			t.Errorf("settles after %v, want %v", got, dialEvery)
		}
		a.mu.Unlock()
		time.Sleep(2 * dialEvery)
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.again != nil {
			t.Error("the timer is still set: nothing was settled")
		}
	})
}

// quiet is a fleet that never answers.
type quiet struct{}

func (quiet) Ask(int)             {}
func (quiet) Give(*engine.Permit) {}
func (quiet) Offer(int)           {}
func (quiet) Full() bool          { return false }
func (quiet) Err() error          { return nil }

// A recall that came for a permit which had just been given back is void after a moment. A withdrawal is not for that one.
func TestKeepIsNotForVoidRecalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(nil, Options{})
		a.Attach(quiet{})
		a.Recall(1, 0)
		time.Sleep(2 * aheadFor)
		a.mu.Lock()
		a.owned, a.turns, a.debt = 2, 2, 1
		a.mu.Unlock()
		a.Keep(1)
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.debt != 0 {
			t.Errorf("still owes %d", a.debt)
		}
	})
}
