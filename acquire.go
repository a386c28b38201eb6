package passbuddy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// checkout is a connection, and the permit that covers it or this use of it.
type checkout struct {
	ph         *physical
	slot       *allotment.Slot
	generation uint32 // of slot, PerConnection: see conn
}

// acquire waits for a permit and returns it with a connection. A caller whose permit is lost before
// it has its connection asks again: nothing was done over it yet. The connection that was made
// meanwhile ends.
//
// This is the door of a checkout. AcquireTimeout becomes a deadline here, which travels in the
// context to every later wait: for a turn, for a permit, for the record of the backend, and for
// each of them again. If database/sql tries an operation again that failed with ErrBadConn, that is
// another checkout, with a deadline of its own.
func (cn *connector) acquire(ctx context.Context) (checkout, error) {
	cn.begin()
	defer cn.done()
	if cn.isClosed() {
		return checkout{}, allotment.ErrPoolClosed
	}
	ctx = cn.a.Bounded(ctx, cn.closing)
	defer cn.a.EndWait(ctx)
	for {
		held, err := cn.acquireOnce(ctx)
		if !cn.asksAgain(ctx, err) {
			if err != nil {
				// A connection that came to the caller as it gave up can lie parked.
				cn.sweepLater()
			}
			return held, err
		}
	}
}

// asksAgain reports whether err says that a permit was lost too early to be of use, and its caller
// may still wait.
func (cn *connector) asksAgain(ctx context.Context, err error) bool {
	return errors.Is(err, semaphore.ErrLost) && ctx.Err() == nil && !cn.a.Overdue(ctx)
}

func (cn *connector) acquireOnce(ctx context.Context) (checkout, error) {
	if cn.cfg.Scope == PerCheckout {
		return cn.acquireCheckout(ctx)
	}
	for {
		slot, err := cn.a.Enter(ctx, true)
		if err != nil {
			if slot != nil { // it came as the caller gave up, and has to end
				slot.Attached().(*physical).close()
			}
			return checkout{}, err
		}
		if slot == nil {
			break
		}
		// The turn came with an idle connection: parked, or claimed from a wrapper that lies in
		// database/sql's free list.
		ph := slot.Attached().(*physical)
		if !cn.tooOld(ph) && ph.valid() && ph.resetSession(ctx) {
			cn.moves(ph)
			return checkout{ph, slot, slot.Generation()}, nil
		}
		// If its socket was closed under us, the turn has ended with it, and we queue for another.
		turn := slot.Discard()
		ph.close()
		if turn {
			break
		}
	}
	tied := false // the turn, to the connection
	defer func() {
		if !tied { // also if the driver panics
			cn.a.Exit()
		}
	}()
	slot, err := cn.a.OpenWithin(ctx)
	if err != nil {
		return checkout{}, err
	}
	began := time.Now()
	ph, err := cn.dial(ctx, slot)
	if err == nil && cn.cfg.Fence {
		err = ph.recordBackend(ctx, slot)
	}
	cn.countOpen(began, err)
	if ph == nil {
		return checkout{}, err
	}
	if err == nil && (!slot.Attach(ph) || !slot.CheckOut()) {
		err = fmt.Errorf("passbuddy: while connecting: %w", semaphore.ErrLost)
	}
	if err != nil {
		slot.Leave()
		ph.close()
		return checkout{}, err
	}
	tied = true
	return checkout{ph, slot, slot.Generation()}, nil
}

// giveBack ends a checkout that leaves no wrapper behind. A connection that was claimed is back in
// its wrapper then, or the next caller has it. Any other lies parked for a while, or is closed.
func (cn *connector) giveBack(held checkout) {
	ph := held.ph
	if cn.cfg.Scope == PerCheckout {
		if ph.valid() && cn.idle.put(nil, ph) {
			held.slot.Gone() // after put: see returnCheckout
		} else {
			ph.close()
		}
		return
	}
	if ph.valid() && held.slot.Unclaim() {
		return
	}
	if !ph.valid() || !cn.park(held.slot) {
		held.slot.Leave()
		ph.close()
	}
}
