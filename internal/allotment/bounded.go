package allotment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// AcquireTimeout bounds a whole checkout. A checkout can wait at several stations: for a turn,
// again for another one if the connection that came with it proves dead, or for a connection to
// end. The end is set once, at the door, and travels in the context, as values pass through the
// pools and deadlines do not. It does not bound what is not a wait for a permit, such as a dial.
//
// The close of the pool ends each of these waits, too, and travels with the end. It is a channel
// and not a state of the allotment: a configuration can be used for a second pool after the first
// was closed.

// boundKey names the allotment: a dial can call its user's code, which can use another pool with
// the same context.
type boundKey struct{ a *Allotment }

// bound ends the waits of a checkout, besides its context, and counts them as one.
type bound struct {
	end     time.Time
	closing <-chan struct{} // closed when the caller's pool is closed; nil if that is not known
	wait    wait
}

// A wait that the close of its pool has ended returns ErrPoolClosed. Each integration has its own
// words for it.
var ErrPoolClosed = errors.New("passbuddy: the pool is closed")

// Bounded returns ctx with the time at which the checkout that begins now has waited for
// AcquireTimeout, and with what tells that its pool was closed. One that has them already keeps
// them: so a checkout that a hook makes with the context of another waits as a part of that one.
func (a *Allotment) Bounded(ctx context.Context, closing <-chan struct{}) context.Context {
	if ctx.Value(boundKey{a}) != nil {
		return ctx
	}
	end := time.Now().Add(a.opts.AcquireTimeout)
	return context.WithValue(ctx, boundKey{a}, &bound{end: end, closing: closing})
}

// timeLeft is how long a caller may still wait.
func (a *Allotment) timeLeft(ctx context.Context) time.Duration {
	if b, ok := ctx.Value(boundKey{a}).(*bound); ok {
		return time.Until(b.end)
	}
	return a.opts.AcquireTimeout
}

// IsClosed reports whether c is closed. Nil is not.
func IsClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Overdue reports whether a caller has waited for as long as it may.
func (a *Allotment) Overdue(ctx context.Context) bool { return a.timeLeft(ctx) <= 0 }

// OpenWithin is Open bounded by AcquireTimeout, too. The error then matches ErrCapacity.
func (a *Allotment) OpenWithin(ctx context.Context) (*Slot, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.timeLeft(ctx),
		fmt.Errorf("passbuddy: no connection ended within %v to make room: %w", a.opts.AcquireTimeout, core.ErrCapacity))
	defer cancel()
	return a.Open(ctx)
}

// minRecordTime is how long a new connection has at least to have its backend recorded.
const minRecordTime = 500 * time.Millisecond

// Remaining bounds ctx by what its checkout has left of AcquireTimeout. It is for the record of a
// new connection's backend. The dial that comes before is not cut short, so it may have used up all
// of AcquireTimeout. The connection is there by then: its record gets minRecordTime at least, or
// AcquireTimeout where that is less.
func (a *Allotment) Remaining(ctx context.Context) (context.Context, context.CancelFunc) {
	least := min(minRecordTime, a.opts.AcquireTimeout)
	return context.WithTimeout(ctx, max(a.timeLeft(ctx), least))
}
