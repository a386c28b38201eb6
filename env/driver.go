package env

import (
	"context"
	"database/sql/driver"
	"sync"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/sessions"
	"github.com/passbuddy/passbuddy/internal/settings"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A base is the driver underneath.
type base interface {
	// open prepares for the DSN of s, and has it parsed by nobody. What the driver refuses in it is
	// an error of the first connect, as without PassBuddy: its files may come later than the DB.
	open(s *settings.Settings) (opened, error)
}

// opened is a base for one DSN.
type opened interface {
	// bare returns connections that are not counted.
	bare() driver.Connector
	// counted returns those that are.
	counted(sem *semaphore.Semaphore, cfg passbuddy.Config) driver.Connector
	// poolName is the default of passbuddy.Config.PoolName, or "".
	poolName() string
}

// envDriver is a registered driver.
type envDriver struct {
	base base

	mu         sync.Mutex
	connectors map[string]driver.Connector // by dsn, for Open alone; guarded by mu
}

var (
	_ driver.Driver        = (*envDriver)(nil)
	_ driver.DriverContext = (*envDriver)(nil)
)

// OpenConnector is called by each sql.Open. It reads the environment then, and asks nobody.
func (d *envDriver) OpenConnector(dsn string) (driver.Connector, error) {
	s, err := settings.Read(dsn)
	if err != nil {
		return nil, err
	}
	o, err := d.base.open(s)
	if err != nil {
		return nil, err
	}
	if s.Disabled {
		settings.WarnDisabled()
		return o.bare(), nil
	}
	if s.Pool.PoolName == "" {
		s.Pool.PoolName = o.poolName()
	}
	return &connector{
		driver: d, settings: s, opened: o, table: &sessions.Process,
		closing: make(chan struct{}),
	}, nil
}

// Open is for callers that do not know DriverContext. Those with the same dsn share one pool, for
// as long as the program lives.
func (d *envDriver) Open(dsn string) (driver.Conn, error) {
	d.mu.Lock()
	c, ok := d.connectors[dsn]
	if !ok {
		var err error
		if c, err = d.OpenConnector(dsn); err != nil {
			d.mu.Unlock()
			return nil, err
		}
		if d.connectors == nil {
			d.connectors = make(map[string]driver.Connector)
		}
		d.connectors[dsn] = c
	}
	d.mu.Unlock()
	return c.Connect(context.Background())
}
