package pgxpool_test

import (
	"context"
	"errors"
	"testing"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A caller that hangs up while permits are free gets its context's own error, as from a bare pool.
// An operator who counts ErrCapacity to raise the capacity must not count such callers.
func TestCallerThatHangsUpIsNotAtCapacity(t *testing.T) {
	f := newFleet(t, 20)
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		pool := f.process(passbuddy.Config{Scope: scope})
		for range 100 {
			ctx, cancel := context.WithCancel(ctxb)
			go cancel()
			if _, err := pool.Exec(ctx, "select 1"); errors.Is(err, semaphore.ErrCapacity) {
				t.Errorf("%v: %v, though permits are free", scope, err)
			}
			cancel()
		}
		ctx, cancel := context.WithCancel(ctxb)
		cancel()
		if _, err := pool.Acquire(ctx); err != context.Canceled {
			t.Errorf("%v: %v, want context.Canceled itself", scope, err)
		}
	}
}
