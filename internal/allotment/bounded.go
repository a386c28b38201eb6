package allotment

import (
	"context"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// AcquireTimeout bounds a whole checkout. A checkout can wait at several stations: for a turn, again for another one if the connection that came
// with it proves dead, for a connection to end that makes room. The end is set once, at the door, and travels in the context, as values pass through the
// pools and deadlines do not. What is not a wait for a permit, such as a dial, is not bounded by it.

type endKey struct{}

// Bounded returns ctx with the time at which the checkout that begins now has waited for AcquireTimeout. One that has it already keeps it.
func (a *Allotment) Bounded(ctx context.Context) context.Context {
	if ctx.Value(endKey{}) != nil {
		return ctx
	}
	return context.WithValue(ctx, endKey{}, time.Now().Add(a.opts.AcquireTimeout))
}

// left is how long a caller may still wait.
func (a *Allotment) left(ctx context.Context) time.Duration {
	if end, ok := ctx.Value(endKey{}).(time.Time); ok {
		return time.Until(end)
	}
	return a.opts.AcquireTimeout
}

// OpenWithin is Open bounded by AcquireTimeout, too. The error then matches ErrCapacity.
func (a *Allotment) OpenWithin(ctx context.Context) (*Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.left(ctx),
		fmt.Errorf("passbuddy: no connection ended within %v to make room: %w", a.opts.AcquireTimeout, semaphore.ErrCapacity))
	defer cancel()
	return a.Open(ctx)
}
