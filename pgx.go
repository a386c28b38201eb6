package passbuddy

import (
	"context"
	"database/sql/driver"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// followDriver returns d's connector for dsn. With pgx's stdlib it is one whose sockets we follow.
func followDriver(d driver.Driver, dsn string) (driver.Connector, error) {
	if std, ok := d.(*stdlib.Driver); ok {
		// A dsn that does not parse is the name of a configuration (stdlib.RegisterConnConfig), or an error for stdlib to report.
		if _, err := pgx.ParseConfig(dsn); err == nil {
			return &pgxConnector{dsn: dsn, driver: std}, nil
		}
	}
	if dc, ok := d.(driver.DriverContext); ok {
		c, err := dc.OpenConnector(dsn)
		if err != nil {
			return nil, err
		}
		return followConnector(c), nil
	}
	return dsnConnector{dsn: dsn, driver: d}, nil
}

// pgxConnector is stdlib's own connector for a dsn, with a dial function of ours.
type pgxConnector struct {
	dsn    string
	driver *stdlib.Driver
}

// Connect parses the dsn each time, as stdlib's own does: service and password files may have changed.
func (c *pgxConnector) Connect(ctx context.Context) (driver.Conn, error) {
	cfg, err := pgx.ParseConfig(c.dsn)
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = (&Dialer{Next: cfg.DialFunc}).DialContext
	return stdlib.GetConnector(*cfg).Connect(ctx)
}

func (c *pgxConnector) Driver() driver.Driver { return c.driver }

// followConnector returns a copy of stdlib.GetConnector's result with a dial function of ours, and anything else as it is.
//
// The type is not exported, but its embedded pgx.ConnConfig is, and that is all that is touched here. Should a later
// pgx look different, TestFollowsConnector fails, and connectors are used as they are: see follow for how their end is known then.
func followConnector(c driver.Connector) driver.Connector {
	v := reflect.ValueOf(c)
	if v.Kind() != reflect.Struct || v.Type().PkgPath() != reflect.TypeFor[stdlib.Driver]().PkgPath() {
		return c
	}
	own := reflect.New(v.Type()).Elem()
	own.Set(v)
	field := own.FieldByName("ConnConfig")
	if !field.IsValid() || field.Type() != reflect.TypeFor[pgx.ConnConfig]() {
		return c
	}
	cfg := field.Addr().Interface().(*pgx.ConnConfig)
	if cfg.DialFunc == nil {
		return c // GetPoolConnector: the sockets are its pool's
	}
	cfg.DialFunc = (&Dialer{Next: cfg.DialFunc}).DialContext
	return own.Interface().(driver.Connector)
}
