package env

import (
	"context"
	"database/sql/driver"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/internal/settings"
	"github.com/passbuddy/passbuddy/semaphore"
)

// pgxBase is pgx's stdlib driver.
type pgxBase struct{}

func (pgxBase) open(s *settings.Settings) (opened, error) {
	if s.NamesConfiguration() {
		return registered{stdlib.GetDefaultDriver(), s.DSN}, nil
	}
	return pgxConnector{settings: s}, nil
}

// pgxConnector is stdlib's own connector for a DSN, without our keys, and with a dial function of
// ours if its connections are counted.
type pgxConnector struct {
	settings *settings.Settings
	follow   bool
}

func (c pgxConnector) bare() driver.Connector { return c }

func (c pgxConnector) counted(
	sem *semaphore.Semaphore, cfg passbuddy.Config,
) driver.Connector {
	c.follow = true
	return passbuddy.WrapConnector(c, sem, cfg)
}

func (c pgxConnector) poolName() string {
	cfg, err := c.config()
	if err != nil {
		return ""
	}
	return backend.PoolName(&cfg.Config)
}

// config parses the DSN at each connect, as stdlib does: service and password files may have
// changed.
func (c pgxConnector) config() (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(c.settings.DSN)
	if err != nil {
		return nil, settings.Explain(err)
	}
	return cfg, c.settings.Finish(&cfg.Config)
}

func (c pgxConnector) Connect(ctx context.Context) (driver.Conn, error) {
	cfg, err := c.config()
	if err != nil {
		return nil, err
	}
	if c.follow {
		cfg.DialFunc = (&passbuddy.Dialer{Next: cfg.DialFunc}).DialContext
	}
	return stdlib.GetConnector(*cfg).Connect(ctx)
}

func (c pgxConnector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }
