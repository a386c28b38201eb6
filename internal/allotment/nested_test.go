package allotment_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// TestNestedCheckoutsAreNamed: a caller is refused after a wait in which nothing came back. Its
// error says that callers may wait for each other. The error of a caller that waited in a busy pool
// does not.
func TestNestedCheckoutsAreNamed(t *testing.T) {
	const named = "came back in the"
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
				if !errors.Is(err, semaphore.ErrCapacity) || strings.Contains(err.Error(), named) != c.named {
					t.Errorf("refused with %v", err)
				}
				wg.Wait()
			})
		})
	}
}
