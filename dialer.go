package passbuddy

import (
	"context"
	"database/sql/driver"
	"net"
	"reflect"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// A Dialer lets permits follow the sockets of a driver that can be given a dial function and passes
// it the context of Connect. The permit is then given back when the server has closed its end, and
// a connection whose lease is lost can be ended while it is in use. It is not needed for pgx, where
// PassBuddy installs its own.
//
// For lib/pq:
//
//	c, err := pq.NewConnector(dsn)
//	...
//	c.Dialer(&passbuddy.Dialer{})
//	db := passbuddy.OpenDB(c, sem, passbuddy.Config{})
//
// For pgx, where it was wrapped by others before PassBuddy sees it:
//
//	cfg.DialFunc = (&passbuddy.Dialer{Next: cfg.DialFunc}).DialContext
//
// A driver may dial several times in one Connect, and forget sockets that it has no use for. The
// permit is that of the socket it keeps, and the others are closed.
//
// On Linux the sockets have TCP_USER_TIMEOUT set to a minute, so that a peer that acknowledges
// nothing is found out. A Next that sets one of its own, or turns keepalive off, has its way.
//
// Dials that are not part of a Connect, such as those of cancel requests, are passed on unchanged.
// The zero value is ready to use, for any number of connections.
type Dialer struct {
	// Next makes the socket. Default a zero net.Dialer's DialContext.
	Next func(ctx context.Context, network, address string) (net.Conn, error)
}

// DialContext dials.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	next := d.Next
	if next == nil {
		next = new(net.Dialer).DialContext
	}
	if at, ok := ctx.Value(attemptKey{}).(*connectAttempt); ok {
		return at.dial(ctx, next, network, address)
	}
	return next(ctx, network, address)
}

// Dial is DialContext without a context, for drivers that want such a method. Permits do not follow
// the sockets that it dials.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialTimeout is Dial with a bound. As with [net.DialTimeout], 0 is no bound.
func (d *Dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	if timeout == 0 {
		return d.Dial(network, address)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// followDriver returns d's connector for dsn. With pgx's stdlib it is one whose sockets we follow.
func followDriver(d driver.Driver, dsn string) (driver.Connector, error) {
	if std, ok := d.(*stdlib.Driver); ok {
		// A dsn that does not parse is the name of a configuration (stdlib.RegisterConnConfig), or
		// an error for stdlib to report.
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

// Connect parses the dsn each time, as stdlib's own does: service and password files may have
// changed.
func (c *pgxConnector) Connect(ctx context.Context) (driver.Conn, error) {
	cfg, err := pgx.ParseConfig(c.dsn)
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = (&Dialer{Next: cfg.DialFunc}).DialContext
	return stdlib.GetConnector(*cfg).Connect(ctx)
}

func (c *pgxConnector) Driver() driver.Driver { return c.driver }

// followConnector returns a copy of stdlib.GetConnector's result with a dial function of ours, and
// any other connector as it is.
//
// The type is not exported, but its embedded pgx.ConnConfig is, and nothing else is touched here.
// Should a later pgx look different, TestFollowsConnector fails, and connectors are used as they
// are: awaitBackend says how we know the end of their backends then.
func followConnector(c driver.Connector) driver.Connector {
	if _, ok := stdlibConfig(c); !ok {
		return c
	}
	v := reflect.ValueOf(c)
	own := reflect.New(v.Type()).Elem()
	own.Set(v)
	cfg := own.FieldByName("ConnConfig").Addr().Interface().(*pgx.ConnConfig)
	if cfg.DialFunc == nil {
		return c // GetPoolConnector: the sockets are its pool's
	}
	cfg.DialFunc = (&Dialer{Next: cfg.DialFunc}).DialContext
	return own.Interface().(driver.Connector)
}

// stdlibConfig finds the pgx.ConnConfig in stdlib.GetConnector's result.
func stdlibConfig(c driver.Connector) (field reflect.Value, ok bool) {
	v := reflect.ValueOf(c)
	stdlibs := reflect.TypeFor[stdlib.Driver]().PkgPath()
	if v.Kind() != reflect.Struct || v.Type().PkgPath() != stdlibs {
		return field, false
	}
	field = v.FieldByName("ConnConfig")
	return field, field.IsValid() && field.Type() == reflect.TypeFor[pgx.ConnConfig]()
}
