package allotment

import (
	"context"
	"time"
)

// minRecordTime is what a new connection gets to have its backend recorded, however late it is.
const minRecordTime = 500 * time.Millisecond

// Remaining bounds ctx by what its checkout has left of AcquireTimeout. It is for the record of a
// new connection's backend. The dial that comes before is not cut short, so it may have used up all
// of AcquireTimeout. The connection is there by then: its record gets minRecordTime at least, or
// AcquireTimeout where that is less.
func (a *Allotment) Remaining(ctx context.Context) (context.Context, context.CancelFunc) {
	least := min(minRecordTime, a.opts.AcquireTimeout)
	return context.WithTimeout(ctx, max(a.left(ctx), least))
}
