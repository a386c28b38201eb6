package heldconns

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// ListenDriver is River's driver, but for the pool that the connection for LISTEN comes from.
type ListenDriver struct {
	*riverpgxv5.Driver
	listen *riverpgxv5.Driver
}

// NewListenDriver returns a driver for river.NewClient that works jobs over one pool, and listens
// over a connection of the other.
func NewListenDriver(pool, listen *pgxpool.Pool) ListenDriver {
	return ListenDriver{Driver: riverpgxv5.New(pool), listen: riverpgxv5.New(listen)}
}

// GetListener is called once by each client.
func (d ListenDriver) GetListener(p *riverdriver.GetListenenerParams) riverdriver.Listener {
	return d.listen.GetListener(p)
}
