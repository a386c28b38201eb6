package allotment

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
)

// A later timer must not replace an earlier one. With connects of 1 s the next look at the backlog
// is seconds away, and the next dial is due in milliseconds.
func TestSettleInKeepsTheEarlierTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(nil, Options{})
		a.Attach(quiet{})
		began := time.Now()
		a.mu.Lock()
		a.settleIn(4 * time.Second)
		a.settleIn(dialEvery)
		a.settleIn(time.Second)
		if got := a.timerAt.Sub(began); got != dialEvery {
			t.Errorf("settles after %v, want %v", got, dialEvery)
		}
		a.mu.Unlock()
		time.Sleep(2 * dialEvery)
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.timer != nil {
			t.Error("the timer is still set: nothing was settled")
		}
	})
}

// quiet is an engine that never answers.
type quiet struct{}

func (quiet) Ask(int)                                     {}
func (quiet) Give(*engine.Permit)                         {}
func (quiet) Offer(int)                                   {}
func (quiet) Moved(time.Duration)                         {}
func (quiet) Stay(bool)                                   {}
func (quiet) Full() bool                                  { return false }
func (quiet) Err() error                                  { return nil }
func (quiet) Try(context.Context) (*engine.Permit, error) { return nil, core.ErrCapacity }
func (quiet) Close()                                      {}
func (quiet) RecordBackend(*engine.Permit, string) record { return nil }
func (quiet) ClearBackend(*engine.Permit) record          { return nil }
func (quiet) AtCapacity() error                           { return core.ErrCapacity }

// A recall that came for a permit which had just been given back is void after a moment. A
// withdrawal is not for that recall.
func TestKeepIsNotForVoidRecalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(nil, Options{})
		a.Attach(quiet{})
		a.Recall(1, 0)
		time.Sleep(2 * earlyTimeout)
		a.mu.Lock()
		a.slots.n[out], a.slots.turns, a.debts.owed = 2, 2, 1
		a.mu.Unlock()
		a.Keep(1)
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.debts.owed != 0 {
			t.Errorf("still owes %d", a.debts.owed)
		}
	})
}
