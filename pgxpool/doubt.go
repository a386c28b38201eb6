package pgxpool

import (
	"context"
	"errors"
	"fmt"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/semaphore"
)

var _ allotment.SuspectEnder = (*pool)(nil)

// EndSuspects implements [allotment.SuspectEnder].
func (p *pool) EndSuspects(ctx context.Context, ask func(allotment.EndFunc)) error {
	known := p.known.Load()
	if known == nil {
		return fmt.Errorf("pgxpool: nobody has checked anything out yet: %w", semaphore.ErrCapacity)
	}
	conn, err := known.Acquire(&fencing{ctx})
	if errors.Is(err, errClosedPool(known)) {
		return fmt.Errorf("pgxpool: %w: %w", err, semaphore.ErrClosed) // the server may be up: what is in doubt stays counted
	}
	if err != nil {
		return err
	}
	defer conn.Release()
	ask(func(ctx context.Context, suspects []*allotment.Suspect) ([]bool, error) {
		return backend.EndSuspects(ctx, conn.Conn().PgConn(), suspects)
	})
	return nil
}
