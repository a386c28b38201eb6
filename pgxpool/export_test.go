package pgxpool

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// Figures counts the permits and connections of a pool.
func Figures(p *pgxpool.Pool) allotment.Figures {
	return p.Config().ConnConfig.Tracer.(*tracer).allot.Figures()
}
