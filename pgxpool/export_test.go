package pgxpool

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// Figures returns the counts of a pool's permits and connections.
func Figures(p *pgxpool.Pool) allotment.Figures {
	return p.Config().ConnConfig.Tracer.(*tracer).allot.Figures()
}
