package passbuddy

import (
	"context"
	"fmt"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/semaphore"
)

var _ allotment.SuspectEnder = (*connector)(nil)

// EndSuspects implements [allotment.SuspectEnder]. Its connection is a caller's like any other;
// afterwards the next one has it.
func (cn *connector) EndSuspects(ctx context.Context, ask func(allotment.EndFunc)) error {
	cn.mu.Lock()
	closed := cn.closed
	cn.mu.Unlock()
	if closed {
		return fmt.Errorf("passbuddy: this DB: %w", semaphore.ErrClosed)
	}
	held, err := cn.acquire(ctx)
	if err != nil {
		return err
	}
	defer cn.putBack(held)
	if held.ph.pgx == nil { // a driver whose connections are of several kinds
		return fmt.Errorf("passbuddy: %T is no pgx connection: %w", held.ph.inner, semaphore.ErrClosed)
	}
	ask(func(ctx context.Context, suspects []*allotment.Suspect) ([]bool, error) {
		return backend.EndSuspects(ctx, held.ph.pgx.PgConn(), suspects)
	})
	return nil
}

// putBack ends a checkout that no wrapper stands for.
func (cn *connector) putBack(held checkout) {
	ph := held.ph
	if cn.cfg.Scope == PerCheckout {
		if ph.valid() && cn.idle.put(nil, ph) {
			held.slot.Gone() // after put: see returnCheckout
		} else {
			_ = ph.end(inBackground)
		}
		return
	}
	if !ph.valid() || !cn.park(held.slot) {
		held.slot.Leave()
		_ = ph.end(inBackground)
	}
}
