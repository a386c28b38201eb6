package pgxpool

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
)

// Stats returns the figures of pool. To ask for them costs no round trip and no connection. It
// returns false if pool was not made by [New], [NewWithConfig] or [Configure], or its tracer was
// replaced since: [semaphore.Semaphore.Stats] has the figures of those that [NewHooks] made. Pools
// that share one configuration have their figures in common.
//
// A caller that hangs up while its connection is being opened has left, but pgx goes on opening. If
// that still has to wait for a permit, the wait counts as the caller's until the permit is there.
func Stats(pool *pgxpool.Pool) (passbuddy.PoolStats, bool) {
	if pool == nil {
		return passbuddy.PoolStats{}, false
	}
	t, ok := pool.Config().ConnConfig.Tracer.(*tracer)
	if !ok {
		return passbuddy.PoolStats{}, false
	}
	return passbuddy.PoolStats(t.allot.Report()), true
}

var (
	_ allotment.ConnCounter = (*pool)(nil)
	_ allotment.Acquirer    = (*pool)(nil)
)

// Acquired implements [allotment.Acquirer]. Of several pools of one configuration only one is
// known.
func (p *pool) Acquired() int {
	known := p.known.Load()
	if known == nil || p.closings.several.Load() {
		return -1
	}
	return int(known.Stat().AcquiredConns())
}

// CountConns implements [allotment.ConnCounter], for PerCheckout. Connections that are being closed
// are known to their slots alone.
func (p *pool) CountConns() (idle, opening, closing int) {
	known := p.known.Load()
	if known == nil {
		return 0, 0, 0
	}
	s := known.Stat()
	return int(s.IdleConns()), int(s.ConstructingConns()), 0
}
