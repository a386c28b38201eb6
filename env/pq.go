package env

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/internal/settings"
	"github.com/passbuddy/passbuddy/semaphore"
)

// pqName is the name by which lib/pq registers itself.
const pqName = "postgres"

// newPQ makes a connector whose sockets PassBuddy follows, if UsePQ was called.
var newPQ atomic.Pointer[followPQ]

type followPQ struct {
	connector func(dsn string) (driver.Connector, error)
	err       error // why there can be none
}

// UsePQ has the driver "passbuddy-pq" follow the sockets of lib/pq:
//
//	env.UsePQ(pq.NewConnector)
//
// Without it, "passbuddy-pq" uses the driver "postgres" as lib/pq has registered it, and counts its
// connections. It cannot see there when a backend ends, though: it gives a permit back when the
// connection's close, and some time after it, is over. And it cannot end a connection in use whose
// lease is lost. See package passbuddy. UsePQ takes effect on DBs that are opened after it.
//
// The function spares this package an import of lib/pq, which many programs do not want.
//
// C is *pq.Connector, and D is pq.Dialer.
func UsePQ[C interface {
	driver.Connector
	Dialer(dialer D)
}, D any](newConnector func(dsn string) (C, error)) {
	follow := &followPQ{connector: func(dsn string) (driver.Connector, error) {
		c, err := newConnector(dsn)
		if err != nil {
			return nil, settings.Explain(err)
		}
		c.Dialer(any(&passbuddy.Dialer{}).(D))
		return c, nil
	}}
	if _, ok := any(&passbuddy.Dialer{}).(D); !ok {
		var c C
		follow.err = fmt.Errorf("passbuddy: UsePQ: %T takes no passbuddy.Dialer", c)
	} else if newConnector == nil {
		follow.err = errors.New("passbuddy: UsePQ: newConnector is nil: use pq.NewConnector")
	}
	newPQ.Store(follow)
}

// pqBase is lib/pq.
type pqBase struct{}

func (pqBase) open(s *settings.Settings) (opened, error) {
	if s.Pool.Fence {
		return nil, errors.New(`passbuddy: PASSBUDDY_FENCE (passbuddy_fence) is for pgx alone: ` +
			`open the DB with the driver "passbuddy", or turn it off`)
	}
	dsn, err := s.ServiceWrittenOut()
	if err != nil {
		return nil, err
	}
	if follow := newPQ.Load(); follow != nil {
		return following{follow, dsn}, follow.err
	}
	d, err := registeredPQ(pqName)
	if err != nil {
		return nil, err
	}
	return registered{d, dsn}, nil
}

// registeredPQ looks for the driver when it is needed: the order of imports does not matter then.
func registeredPQ(name string) (driver.Driver, error) {
	if !slices.Contains(sql.Drivers(), name) {
		return nil, errors.New(`passbuddy: the driver "passbuddy-pq" needs lib/pq: ` +
			`import _ "github.com/lib/pq" (or use the driver "passbuddy", which is pgx)`)
	}
	db, err := sql.Open(name, "") // opens no connection
	if err != nil {
		return nil, fmt.Errorf("passbuddy: the driver %q: %w", name, settings.Explain(err))
	}
	defer db.Close()
	return db.Driver(), nil
}

// registered is a driver that opens by a DSN, as its own sql.Open would.
type registered struct {
	driver driver.Driver
	dsn    string
}

func (r registered) bare() driver.Connector { return r }

func (r registered) counted(
	sem *semaphore.Semaphore, cfg passbuddy.Config,
) driver.Connector {
	return passbuddy.WrapConnector(r, sem, cfg)
}

func (r registered) poolName() string { return poolNameOf(r.dsn) }

func (r registered) Driver() driver.Driver { return r.driver }

func (r registered) Connect(ctx context.Context) (driver.Conn, error) {
	d, ok := r.driver.(driver.DriverContext)
	if !ok {
		conn, err := r.driver.Open(r.dsn)
		return conn, settings.Explain(err)
	}
	c, err := d.OpenConnector(r.dsn)
	if err != nil {
		return nil, settings.Explain(err)
	}
	conn, err := c.Connect(ctx)
	return conn, settings.Explain(err)
}

// following is lib/pq with sockets that PassBuddy follows. It makes lib/pq's connector at each
// connect, as lib/pq's own driver does: service and password files may have changed.
type following struct {
	*followPQ
	dsn string
}

func (f following) bare() driver.Connector { return f }

func (f following) counted(
	sem *semaphore.Semaphore, cfg passbuddy.Config,
) driver.Connector {
	return passbuddy.WrapConnector(f, sem, cfg)
}

func (f following) poolName() string { return poolNameOf(f.dsn) }

func (f following) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := f.connector(f.dsn)
	if err != nil {
		return nil, err
	}
	return c.Connect(ctx)
}

// Driver is lib/pq's, for callers of sql.DB.Driver alone.
func (f following) Driver() driver.Driver {
	c, err := f.connector(f.dsn)
	if err != nil {
		return refusing{err}
	}
	return c.Driver()
}

// refusing stands for a driver that cannot be had.
type refusing struct{ err error }

func (r refusing) Open(string) (driver.Conn, error) { return nil, r.err }

// poolNameOf reads a DSN as pgx does, which is the same for what the name needs.
func poolNameOf(dsn string) string {
	if !strings.Contains(dsn, "=") && !strings.Contains(dsn, "://") {
		return ""
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return ""
	}
	return backend.PoolName(&cfg.Config)
}
