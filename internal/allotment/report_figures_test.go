package allotment_test

import (
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The pool cannot say when a checkout began, but since when it is known to last.
func TestOldestUse(t *testing.T) {
	scopes(t, func(t *testing.T, perCheckout bool) {
		inFleet(t, 2, func(t *testing.T, fl *fleet) {
			// Heartbeats look, too, at times that are drawn: none comes within this lease.
			p := fl.startAs(semaphore.Config{TTL: time.Hour},
				allotment.Options{PerCheckout: perCheckout})
			is := func(want time.Duration) {
				t.Helper()
				if got := p.Report().OldestUse; got != want {
					t.Errorf("%v, want %v", got, want)
				}
			}
			is(0)
			c := p.hold(t.Context())
			time.Sleep(time.Second)
			is(0) // no look has met it before
			met := time.Now()
			time.Sleep(time.Second)
			is(time.Second)
			other := p.hold(t.Context())
			time.Sleep(time.Second)
			is(time.Since(met))
			finish := p.release
			if perCheckout {
				finish = func(c *allotment.Slot) { fl.count(-1); c.Gone() }
			}
			finish(c)
			is(0) // the other was not met yet
			time.Sleep(time.Second)
			is(time.Second)
			for range 3 { // one short use after the other is not a long one
				finish(other)
				time.Sleep(time.Second)
				is(0)
				other = p.hold(t.Context())
				is(0)
				time.Sleep(time.Second)
				finish(other)
				other = p.hold(t.Context())
				is(0)
			}
			finish(other)
			is(0)
		})
	})
}

// With claims, as in database/sql, a connection changes hands without lying idle between.
func TestOldestUseOfAClaimedSlot(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{})
		c := p.hold(t.Context())
		p.Report()
		time.Sleep(time.Second)
		if !c.Keep() || !c.Retake(c.Generation()) {
			t.Fatal("not warm")
		}
		if got := p.Report().OldestUse; got != 0 {
			t.Errorf("taken again just now: %v", got)
		}
		go func() { time.Sleep(time.Second); c.Return(true) }()
		if claimed := p.hold(t.Context()); claimed != c {
			t.Fatal("another slot")
		}
		if got := p.Report().OldestUse; got != 0 {
			t.Errorf("claimed just now: %v", got)
		}
		time.Sleep(time.Second)
		if got := p.Report().OldestUse; got != time.Second {
			t.Errorf("%v, want 1s", got)
		}
		p.release(c)
	})
}

// Each state of a connection is its own figure, and all of them have permits.
func TestFiguresOfConnections(t *testing.T) {
	inFleet(t, 10, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{Name: "or\x00ders\n" + strings.Repeat("é", 100)})
		used := p.hold(t.Context())
		var idle []*allotment.Slot
		for range 2 {
			idle = append(idle, p.hold(t.Context()))
		}
		var closing []*allotment.Slot
		for range 3 {
			closing = append(closing, p.hold(t.Context()))
		}
		if _, err := p.Enter(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		opening, err := p.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range idle {
			c.Return(true)
		}
		for _, c := range closing {
			c.Leave()
		}
		f := p.Report()
		got := []int{f.InUse, f.Idle, f.Opening, f.Closing, f.Permits}
		if f.InUse != 1 || f.Idle != 2 || f.Opening != 1 || f.Closing != 3 || f.Permits != 7 {
			t.Errorf("in use, idle, opening, closing, permits: %d", got)
		}
		if want := "orders" + strings.Repeat("é", 47); f.Name != want {
			t.Errorf("its name is %q", f.Name)
		}
		if list := p.sem.Stats().Pools; len(list) != 1 || list[0].InUse != 1 || list[0].Idle != 2 {
			t.Errorf("the session reports %+v", list)
		}
		opening.Gone()
		p.Exit()
		used.Return(true)
		for _, c := range closing {
			c.Gone()
		}
		fl.count(-len(closing))
	})
}

// A pool of checkouts knows its idle connections, and those under way.
func TestFiguresOfCheckouts(t *testing.T) {
	inFleet(t, 5, func(t *testing.T, fl *fleet) {
		p := counter{fl.start(allotment.Options{PerCheckout: true})}
		p.Allotment = allotment.New(p,
			allotment.Options{PerCheckout: true, AcquireTimeout: time.Minute})
		if err := p.Join(p.sem.Engine(engine.Seam{})); err != nil {
			t.Fatal(err)
		}
		var held []*allotment.Slot
		for range 4 {
			held = append(held, p.hold(t.Context()))
		}
		f := p.Report()
		got := [...]int{f.InUse, f.Idle, f.Opening, f.Closing, f.Permits}
		if got != [...]int{3, 7, 1, 2, 4} {
			t.Errorf("in use, idle, opening, closing, permits: %d", got)
		}
		for _, c := range held {
			c.Gone()
		}
		fl.count(-4)
	})
}
