package pgxpool

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
)

// This file is passbuddy.Config.Fence.

// recordBackend records the backend of a new connection. It asks the server and Redis.
func (p *pool) recordBackend(ctx context.Context, s *allotment.Slot, pc *pgconn.PgConn) error {
	if s == nil {
		return errUntracked
	}
	// pgx's ctx has no deadline: it outlives the caller.
	ctx, cancel := context.WithTimeout(ctx, p.acquireTimeout)
	defer cancel()
	b, err := backend.Of(ctx, pc)
	if err != nil {
		return err
	}
	return s.RecordBackend(ctx, b)
}

// fencing is the context of a checkout that is to end backends of others, or to look for them. The
// user's hooks are spared it, as far as pgx tells it from others: those of its release see it, and
// Stat counts it.
type fencing struct{ context.Context }

func isFencing(ctx context.Context) bool {
	switch c := ctx.(type) {
	case *arrival:
		ctx = c.Context
	case *turn:
		ctx = c.Context
	}
	_, yes := ctx.(*fencing)
	return yes
}

var _ allotment.BackendEnder = (*pool)(nil)

// EndBackends implements [allotment.BackendEnder].
func (p *pool) EndBackends(ctx context.Context, backends []allotment.Backend) []bool {
	return p.askOf(ctx, backends, backend.End)
}

// BackendsGone implements [allotment.BackendEnder].
func (p *pool) BackendsGone(ctx context.Context, backends []allotment.Backend) []bool {
	return p.askOf(ctx, backends, backend.Gone)
}

// askOf asks about those backends over a connection of the pool.
func (p *pool) askOf(ctx context.Context, backends []allotment.Backend, ask backend.Asker) []bool {
	known := p.known.Load()
	if known == nil {
		return nil // nobody has checked anything out of it yet
	}
	conn, err := known.Acquire(&fencing{ctx})
	if err != nil {
		return nil
	}
	defer conn.Release()
	return ask(ctx, conn.Conn().PgConn(), backends)
}
