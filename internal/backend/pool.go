package backend

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Record has the backend of pc, which is new, recorded as slot's. It asks the server and Redis, within
// what the checkout has left of AcquireTimeout.
func Record(
	ctx context.Context, a *allotment.Allotment, slot *allotment.Slot, pc *pgconn.PgConn,
) error {
	ctx, cancel := a.Remaining(ctx)
	defer cancel()
	b, err := Of(ctx, pc)
	if err != nil {
		return err
	}
	return slot.RecordBackend(ctx, b)
}

// Lender is a pool that lends its connections, to end backends that it did not open, or that the
// network has lost, and to look for them. It implements what allotment.BackendEnder and
// allotment.SuspectEnder have beyond allotment.Pool.
type Lender struct {
	// Lend calls use with a connection, and then has it back. An error says that there was none.
	Lend func(ctx context.Context, use func(*pgconn.PgConn)) error
}

func (l Lender) EndBackends(ctx context.Context, backends []semaphore.Backend) (gone []bool) {
	_ = l.Lend(ctx, func(pc *pgconn.PgConn) { gone = End(ctx, pc, backends) })
	return gone
}

func (l Lender) BackendsGone(ctx context.Context, backends []semaphore.Backend) (gone []bool) {
	_ = l.Lend(ctx, func(pc *pgconn.PgConn) { gone = Gone(ctx, pc, backends) })
	return gone
}

func (l Lender) EndSuspects(ctx context.Context, ask func(allotment.EndFunc)) error {
	return l.Lend(ctx, func(pc *pgconn.PgConn) {
		ask(func(ctx context.Context, suspects []*allotment.Suspect) ([]bool, error) {
			return EndSuspects(ctx, pc, suspects)
		})
	})
}
