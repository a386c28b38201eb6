package backend

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// Record records the backend of pc, a new connection, as slot's. It asks the server and Redis,
// within the rest of the checkout's AcquireTimeout.
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

// Lender is a pool that lends its connections to find and end backends: those of other processes,
// and those of connections that the network has lost. It implements the methods that
// allotment.BackendEnder and allotment.SuspectEnder add to allotment.Pool.
type Lender struct {
	// Lend calls use with a connection, and then takes the connection back. An error means that
	// there was no connection.
	Lend func(ctx context.Context, use func(*pgconn.PgConn)) error
}

func (l Lender) EndBackends(ctx context.Context, backends []allotment.Backend) (gone []bool) {
	_ = l.Lend(ctx, func(pc *pgconn.PgConn) { gone = End(ctx, pc, backends) })
	return gone
}

func (l Lender) BackendsGone(ctx context.Context, backends []allotment.Backend) (gone []bool) {
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
