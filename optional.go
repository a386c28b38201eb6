package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
)

// The optional interfaces of driver.Conn. Each is passed on to the driver's connection. Where that
// lacks it, our method does as database/sql does without it (ctxutil.go there).

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

// PrepareContext returns the driver's own Stmt. database/sql may close it past us, and when it may
// decides who can have the connection; see pin.
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
// When the context of a transaction ends before it is committed or rolled back, database/sql rolls
// it back. It also discards the connection, unless that has both a SessionResetter and a Validator.
// Our wrapper always has both. Where the driver's connection has not, IsValid looks at the context
// and discards in the same case. On a transaction of an sql.Conn it can look only when that is
// closed: until then the sql.Conn stays usable. If the context has ended by then, be it after a
// commit, the connection is discarded.
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

// CheckNamedValue is called for each argument, before the operation. ErrSkip stands for not having
// it. An empty wrapper has no driver's connection to ask yet, and no context to open one with:
// ExecContext and QueryContext check later, by checkLate.
func (c *conn) CheckNamedValue(v *driver.NamedValue) error {
	switch {
	case c.ph == nil:
		return nil
	case c.ph.checker == nil:
		return driver.ErrSkip
	}
	return c.ph.checker.CheckNamedValue(v)
}

func (c *execConn) ExecContext(
	ctx context.Context, query string, args []driver.NamedValue,
) (res driver.Result, err error) {
	if args, err = c.useChecked(ctx, args); err != nil {
		return nil, err
	}
	switch {
	case c.ph.execer != nil:
		res, err = c.ph.execer.ExecContext(ctx, query, args)
	case c.ph.oldExecer != nil:
		var values []driver.Value
		if values, err = plainValues(ctx, args); err == nil {
			res, err = c.ph.oldExecer.Exec(query, values)
		}
	default:
		err = driver.ErrSkip
	}
	return res, c.told(err)
}

func (c *queryConn) QueryContext(
	ctx context.Context, query string, args []driver.NamedValue,
) (driver.Rows, error) {
	return c.query(ctx, query, args)
}

func (c *execQueryConn) QueryContext(
	ctx context.Context, query string, args []driver.NamedValue,
) (driver.Rows, error) {
	return c.query(ctx, query, args)
}

func (c *conn) query(
	ctx context.Context, query string, args []driver.NamedValue,
) (rows driver.Rows, err error) {
	if args, err = c.useChecked(ctx, args); err != nil {
		return nil, err
	}
	switch {
	case c.ph.queryer != nil:
		rows, err = c.ph.queryer.QueryContext(ctx, query, args)
	case c.ph.oldQuery != nil:
		var values []driver.Value
		if values, err = plainValues(ctx, args); err == nil {
			rows, err = c.ph.oldQuery.Query(query, values)
		}
	default:
		err = driver.ErrSkip
	}
	return rows, c.told(err)
}

// useChecked is use for an operation with arguments, which it returns as the driver is to get them.
func (c *conn) useChecked(
	ctx context.Context, args []driver.NamedValue,
) ([]driver.NamedValue, error) {
	unchecked := c.ph == nil
	if err := c.use(ctx); err != nil {
		return nil, err
	}
	if unchecked {
		return c.checkLate(args)
	}
	return args, nil
}

// checkLate does for an operation that opened its connection what database/sql's
// driverArgsConnLocked would have done before it: CheckNamedValue has let the arguments through as
// they came.
func (c *conn) checkLate(args []driver.NamedValue) ([]driver.NamedValue, error) {
	kept := args[:0]
	for _, v := range args {
		v.Ordinal = len(kept) + 1
		err := driver.ErrSkip
		if c.ph.checker != nil {
			err = c.ph.checker.CheckNamedValue(&v)
		}
		if errors.Is(err, driver.ErrSkip) {
			v.Value, err = driver.DefaultParameterConverter.ConvertValue(v.Value)
		}
		switch {
		case err == nil:
			kept = append(kept, v)
		case errors.Is(err, driver.ErrRemoveArgument):
		case v.Name != "":
			return nil, fmt.Errorf("sql: converting argument with name %q type: %w", v.Name, err)
		default:
			return nil, fmt.Errorf("sql: converting argument $%d type: %w", v.Ordinal, err)
		}
	}
	return kept, nil
}

// plainValues is database/sql's namedValueToValue, and its look at the context before a driver that
// knows none.
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
