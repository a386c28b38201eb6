package allotment_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	stuckLine = "none of the connections that this process has in use comes back"
	stuckText = "came back"
)

// TestNestedCheckoutsAreNamed: a caller is refused after a wait in which nothing came back. Its
// error says that callers may wait for each other. The error of a caller that waited in a busy pool
// does not.
func TestNestedCheckoutsAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		options  allotment.Options
		busy     bool          // the connection is used by one caller after the other
		patience time.Duration // of the caller, if shorter
		named    bool
	}{
		"nested":               {options: allotment.Options{AcquireTimeout: 2 * time.Second}, named: true},
		"nested, per checkout": {options: allotment.Options{AcquireTimeout: 2 * time.Second, PerCheckout: true}, named: true},
		"its own deadline":     {options: allotment.Options{AcquireTimeout: time.Minute}, patience: 2 * time.Second, named: true},
		"in a hurry":           {options: allotment.Options{AcquireTimeout: 2 * time.Second}, patience: 100 * time.Millisecond},
		"busy":                 {options: allotment.Options{AcquireTimeout: time.Minute}, patience: 1200 * time.Millisecond, busy: true},
	} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, 1, func(t *testing.T, fl *fleet) {
				p := fl.startAs(semaphore.Config{}, c.options)
				users, hold := 1, 10*time.Second
				if c.busy { // more callers than the connection can serve in time
					users, hold = 10, 500*time.Millisecond
				}
				var wg sync.WaitGroup
				for range users {
					wg.Go(func() { _ = p.use(t.Context(), hold) })
				}
				time.Sleep(100 * time.Millisecond)
				ctx := t.Context()
				if c.patience > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.patience)
					defer cancel()
				}
				_, err := p.Enter(ctx, true)
				if !errors.Is(err, semaphore.ErrCapacity) || strings.Contains(err.Error(), stuckText) != c.named {
					t.Errorf("refused with %v", err)
				}
				wg.Wait()
			})
		})
	}
}

// The first connection of a process was checked out while another caller waited already. To say of
// that one that it did not come back would mislead.
func TestAConnectionOfThisMomentDoesNotStayOut(t *testing.T) {
	scopes(t, func(t *testing.T, perCheckout bool) {
		inFleet(t, 1, func(t *testing.T, fl *fleet) {
			opts := allotment.Options{PerCheckout: perCheckout, AcquireTimeout: 5 * time.Second}
			other, p := fl.start(opts), fl.start(opts)
			held := other.holdOpen()
			time.AfterFunc(4*time.Second, func() { held.Leave(); other.end(held) })
			served := make(chan *allotment.Slot)
			go func() { served <- p.holdOpen() }()
			time.Sleep(10 * time.Millisecond)
			_, err := p.Enter(t.Context(), true)
			if !errors.Is(err, semaphore.ErrCapacity) || strings.Contains(err.Error(), stuckText) {
				t.Errorf("refused with %v", err)
			}
			p.finish(<-served, perCheckout)
		})
	})
}

// Two processes fill the capacity with connections whose callers ask for another each. Both log it
// once, long before callers are refused, and the errors say what is held and for how long. The next
// incident is logged again.
func TestNestedCheckoutsOfAFleet(t *testing.T) {
	scopes(t, func(t *testing.T, perCheckout bool) {
		inFleet(t, 2, func(t *testing.T, fl *fleet) {
			var logs []*bubble.Log
			var both sync.WaitGroup
			began := time.Now()
			for range 2 {
				log := new(bubble.Log)
				logs = append(logs, log)
				p := fl.startAs(semaphore.Config{Logger: log.Logger()}, allotment.Options{
					PerCheckout: perCheckout, Name: "orders", AcquireTimeout: 100 * time.Second})
				both.Go(func() {
					for range 2 {
						outer := p.holdOpen()
						_, err := p.Enter(t.Context(), true)
						if err == nil {
							t.Error("served although the fleet is full")
							return
						}
						for _, want := range []string{
							`none of the 1 connections that pool "orders" has checked out, the first at least 1m40s ago, came back in the 1m40s of the wait`,
							"callers hold one while they ask for another", "docs/HELD-CONNECTIONS.md",
						} {
							if !strings.Contains(err.Error(), want) {
								t.Errorf("refused with %v\nwant %s", err, want)
							}
						}
						if !errors.Is(err, semaphore.ErrCapacity) {
							t.Error(err)
						}
						p.finish(outer, perCheckout)
						time.Sleep(time.Minute)
					}
				})
			}
			time.Sleep(20 * time.Second)
			for i, log := range logs {
				said := log.Lines("level=WARN")
				if len(said) != 1 || !strings.Contains(said[0], stuckLine) ||
					!strings.Contains(said[0], `waiting="orders: 1 for 1`) ||
					!strings.Contains(said[0], `holding="orders: 1 for 1`) {
					t.Errorf("process %d logs %q in %v", i, said, time.Since(began))
				}
			}
			both.Wait()
			for i, log := range logs {
				if said := log.Lines(stuckLine); len(said) != 2 {
					t.Errorf("process %d logs %d incidents, want 2: %q", i, len(said), said)
				}
			}
		})
	})
}

// Callers of one pool hold its connections while they ask another pool of the same session.
func TestNestedCheckoutsOfTwoPools(t *testing.T) {
	scopes(t, func(t *testing.T, perCheckout bool) {
		inFleet(t, 1, func(t *testing.T, fl *fleet) {
			log := new(bubble.Log)
			opts := allotment.Options{PerCheckout: perCheckout, Name: "locks"}
			locks := fl.startAs(semaphore.Config{Logger: log.Logger()}, opts)
			lock := locks.holdOpen()
			work := *locks
			opts.Name = "work"
			work.another(opts, &work)
			time.Sleep(5 * time.Second)
			_, err := work.Enter(t.Context(), true)
			if err == nil || !strings.Contains(err.Error(), "nothing that this process has in use came back for 3") ||
				!strings.Contains(err.Error(), "(locks: 1 for 3") ||
				!strings.Contains(err.Error(), "docs/HELD-CONNECTIONS.md") {
				t.Errorf("refused with %v", err)
			}
			said := log.Lines("level=WARN")
			if len(said) != 1 || !strings.Contains(said[0], `waiting="work: 1 for 1`) ||
				!strings.Contains(said[0], `holding="locks: 1 for 1`) {
				t.Errorf("logged %q", said)
			}
			locks.finish(lock, perCheckout)
		})
	})
}

// Queries of 8 s, and callers that wait for more than half a minute for their turn: one comes back
// all the time, so nobody is told that callers wait for each other.
func TestSlowQueriesAreNotNested(t *testing.T) {
	scopes(t, func(t *testing.T, perCheckout bool) {
		inFleet(t, 3, func(t *testing.T, fl *fleet) {
			log := new(bubble.Log)
			p := fl.startAs(semaphore.Config{Logger: log.Logger()}, allotment.Options{
				PerCheckout: perCheckout, AcquireTimeout: 35 * time.Second})
			var wg sync.WaitGroup
			var mu sync.Mutex
			refused := 0
			for range 20 {
				wg.Go(func() {
					c, err := p.Enter(t.Context(), true)
					if err == nil && c == nil {
						if c, err = p.OpenWithin(t.Context()); err == nil {
							fl.count(1)
							c.CheckOut()
						}
					}
					if err != nil {
						mu.Lock()
						refused++
						mu.Unlock()
						if !errors.Is(err, semaphore.ErrCapacity) || strings.Contains(err.Error(), stuckText) {
							t.Errorf("refused with %v", err)
						}
						return
					}
					time.Sleep(8 * time.Second)
					p.finish(c, perCheckout)
				})
				time.Sleep(100 * time.Millisecond)
			}
			wg.Wait()
			if refused < 3 {
				t.Errorf("%d callers were refused: too few to tell", refused)
			}
			if said := log.Lines("level=WARN"); len(said) != 0 {
				t.Errorf("logged %q", said)
			}
		})
	})
}
