package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
)

// The optional interfaces of driver.Conn. Each is passed on to the driver's connection, and where that lacks it, does what
// database/sql does without it (ctxutil.go there).

var (
	_ driver.Conn               = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
	_ driver.Pinger             = (*conn)(nil)
	_ driver.NamedValueChecker  = (*conn)(nil)
	_ driver.SessionResetter    = (*conn)(nil)
	_ driver.Validator          = (*conn)(nil)
	_ RawConn                   = (*conn)(nil)

	_ driver.ExecerContext  = (*execConn)(nil)
	_ driver.QueryerContext = (*queryConn)(nil)
	_ driver.ExecerContext  = (*execQueryConn)(nil)
	_ driver.QueryerContext = (*execQueryConn)(nil)
)

// Ping without a Pinger is the checkout alone.
func (c *conn) Ping(ctx context.Context) error {
	if err := c.use(ctx); err != nil {
		return err
	}
	if c.ph.pinger == nil {
		return nil
	}
	return c.told(c.ph.pinger.Ping(ctx))
}

// Prepare is for callers other than database/sql, which uses PrepareContext.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext returns the driver's own Stmt. What database/sql may do with it past us decides about the connection; see pin.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.use(ctx); err != nil {
		return nil, err
	}
	stmt, err := c.prepare(ctx, query)
	if err == nil {
		c.ph.pin(preparedFor())
	}
	return stmt, c.told(err)
}

func (c *conn) prepare(ctx context.Context, query string) (driver.Stmt, error) {
	if c.ph.preparer != nil {
		return c.ph.preparer.PrepareContext(ctx, query)
	}
	stmt, err := c.ph.inner.Prepare(query)
	if err == nil && ctx.Err() != nil {
		_ = stmt.Close()
		return nil, ctx.Err()
	}
	return stmt, err
}

// Begin is for callers other than database/sql, which uses BeginTx.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx returns the driver's own Tx.
//
// When the context of a transaction ends before it is committed or rolled back, database/sql rolls it back; and it discards the connection,
// unless that has both a SessionResetter and a Validator. Ours always has: where the driver's has not, IsValid looks at the context and
// discards in the same case. On a transaction of an sql.Conn it can look only when that is closed: until then the sql.Conn
// stays usable, and if the context has ended by then, be it after a commit, the connection is discarded.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.use(ctx); err != nil {
		return nil, err
	}
	tx, err := c.begin(ctx, opts)
	if err == nil && ctx.Done() != nil && (c.ph.resetter == nil || c.ph.validator == nil) {
		c.txCtx = ctx
	}
	return tx, c.told(err)
}

func (c *conn) begin(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.ph.beginner != nil {
		return c.ph.beginner.BeginTx(ctx, opts)
	}
	if opts.Isolation != driver.IsolationLevel(sql.LevelDefault) {
		return nil, errors.New("sql: driver does not support non-default isolation level")
	}
	if opts.ReadOnly {
		return nil, errors.New("sql: driver does not support read-only transactions")
	}
	tx, err := c.ph.inner.Begin() //nolint:staticcheck // the fallback for drivers without BeginTx
	if err == nil && ctx.Err() != nil {
		_ = tx.Rollback()
		return nil, ctx.Err()
	}
	return tx, err
}

// CheckNamedValue is called for each argument, before the operation. ErrSkip stands for not having it. On an empty connection,
// there is nobody to ask yet, nor a context to open it with: ExecContext and QueryContext check later.
func (c *conn) CheckNamedValue(v *driver.NamedValue) error {
	switch {
	case c.ph == nil:
		return nil
	case c.ph.checker == nil:
		return driver.ErrSkip
	}
	return c.ph.checker.CheckNamedValue(v)
}

func (c *execConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.exec(ctx, query, args)
}

func (c *execQueryConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.exec(ctx, query, args)
}

func (c *queryConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.query(ctx, query, args)
}

func (c *execQueryConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.query(ctx, query, args)
}

func (c *conn) exec(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	unchecked := c.ph == nil
	if err := c.use(ctx); err != nil {
		return nil, err
	}
	if unchecked {
		var err error
		if args, err = c.checkLate(args); err != nil {
			return nil, err
		}
	}
	switch {
	case c.ph.execer != nil:
		res, err := c.ph.execer.ExecContext(ctx, query, args)
		return res, c.told(err)
	case c.ph.oldExecer != nil:
		values, err := plainValues(ctx, args)
		if err != nil {
			return nil, err
		}
		res, err := c.ph.oldExecer.Exec(query, values)
		return res, c.told(err)
	}
	return nil, driver.ErrSkip
}

func (c *conn) query(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	unchecked := c.ph == nil
	if err := c.use(ctx); err != nil {
		return nil, err
	}
	if unchecked {
		var err error
		if args, err = c.checkLate(args); err != nil {
			return nil, err
		}
	}
	switch {
	case c.ph.queryer != nil:
		rows, err := c.ph.queryer.QueryContext(ctx, query, args)
		return rows, c.told(err)
	case c.ph.oldQuery != nil:
		values, err := plainValues(ctx, args)
		if err != nil {
			return nil, err
		}
		rows, err := c.ph.oldQuery.Query(query, values)
		return rows, c.told(err)
	}
	return nil, driver.ErrSkip
}

// plainValues is database/sql's namedValueToValue, and its look at the context before a driver that knows none.
func plainValues(ctx context.Context, args []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(args))
	for i, a := range args {
		if a.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		values[i] = a.Value
	}
	return values, ctx.Err()
}
