package allotment

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"
)

// available is derived from other counts. It must agree with a count of the permits: those of the
// pool, less the turns, less those that are leaving or to be evicted, less the slots that open
// without a turn.
func TestAvailableAgreesWithACount(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 10_000 {
		a := New(nil, Options{})
		for s := range gone {
			a.slots.n[s] = r.IntN(5)
		}
		a.slots.turns = a.slots.n[out] + r.IntN(5)
		for range r.IntN(5) {
			a.permits.add(nil)
		}
		a.debts.evicting = r.IntN(a.slots.n[idle] + 1)
		uncovered := max(0, a.slots.n[opening]-(a.slots.turns-a.slots.n[out]))
		want := a.owned() - a.slots.turns - a.slots.n[leaving] - a.debts.evicting - uncovered
		if got := a.available(); got != want {
			t.Fatalf("seed %d: %d available, want %d: %+v, %d spare, %d evicting",
				seed, got, want, a.slots, len(a.permits.spare), a.debts.evicting)
		}
	}
}

// A slot that is out has a turn, even if the pool hands slots out past the queue, and callers give
// up.
func TestTurnsCoverTheSlotsThatAreOut(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var s slots
	s.n[idle] = 5
	for step := range 10_000 {
		switch r.IntN(4) {
		case 0: // Enter
			s.turns++
		case 1: // CheckOut, with a turn or past the queue
			if s.n[idle] > 0 {
				s.tie()
				s.move(idle, out)
			}
		case 2: // Exit
			s.untie()
		case 3: // Return
			if s.n[out] > 0 {
				s.endCheckout()
				s.move(out, idle)
			}
		}
		if s.turns < s.n[out] || s.all() != 5 || s.coming() != s.turns-s.n[out] {
			t.Fatalf("seed %d, step %d: %+v", seed, step, s)
		}
	}
}

// A caller gives up at the moment in which it is served, and the pool has meanwhile handed the slot
// out past the queue. The slot has taken the caller's turn, and keeps it.
func TestATurnThatAnotherSlotTookIsNotGivenBackTwice(t *testing.T) {
	for range 50 { // a caller that is served and cancelled at once sees either
		a := New(nil, Options{AcquireTimeout: time.Minute})
		a.Attach(quiet{})
		a.mu.Lock()
		a.permits.add(new(engine.Permit))
		s := a.newSlot()
		a.mu.Unlock()
		s.Ready()
		ctx, cancel := context.WithCancel(t.Context())
		a.mu.Lock()
		w, err := a.queueForTurn(ctx, false)
		a.mu.Unlock()
		if err != nil || !s.CheckOut() { // as pgxpool's AcquireAllIdle
			t.Fatal("bug in the test: not checked out")
		}
		cancel()
		if err := a.awaitTurn(ctx, w); err == nil {
			a.Exit()
		}
		s.Return(true)
		if f := a.Figures(); f.Turns != 0 {
			t.Fatalf("%+v", f)
		}
	}
}

// Emptied tells the instant at which no slot is left, to everyone that waits for it.
func TestEmptied(t *testing.T) {
	a := New(nil, Options{})
	if !IsClosed(a.Emptied()) {
		t.Error("a pool without a slot is not empty")
	}
	one, two := new(Slot), new(Slot)
	a.all[one], a.all[two] = struct{}{}, struct{}{}
	first, second := a.Emptied(), a.Emptied()
	a.remove(one)
	if IsClosed(first) {
		t.Error("it is empty with a slot left")
	}
	a.remove(two)
	if !IsClosed(first) || !IsClosed(second) || !IsClosed(a.Emptied()) {
		t.Error("it is not empty without a slot")
	}
	a.all[one] = struct{}{}
	if IsClosed(a.Emptied()) {
		t.Error("it is empty again with a new slot")
	}
}
