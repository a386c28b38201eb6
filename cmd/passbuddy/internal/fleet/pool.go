package fleet

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"log/slog"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// pool lends connections to a worker's goroutines.
type pool interface {
	checkout(ctx context.Context) (connection, error)
	close()
}

type connection interface {
	operate(ctx context.Context, op Operation) error
	giveBack()
}

// openPool opens the pool that cfg asks for. This function shows what PassBuddy changes in a
// program.
func openPool(ctx context.Context, cfg Config, c *connectCounter) (pool, error) {
	switch cfg.Guard {
	case Original:
		permits, err := newOriginal(ctx, cfg)
		if err != nil {
			return nil, err
		}
		p, err := openBare(ctx, cfg, c)
		if err != nil {
			_ = permits.Close()
			return nil, err
		}
		return guardedPool{p, permits}, nil
	case PassBuddy:
		return openPassBuddy(ctx, cfg, c)
	}
	return openBare(ctx, cfg, c)
}

func openBare(ctx context.Context, cfg Config, c *connectCounter) (pool, error) {
	if cfg.Integration == SQL {
		connector, err := sqlConnector(cfg, c)
		if err != nil {
			return nil, err
		}
		return openSQL(connector, cfg, nil), nil
	}
	pgxCfg, err := pgxConfig(cfg, c)
	if err != nil {
		return nil, err
	}
	p, err := pgxpool.NewWithConfig(ctx, pgxCfg)
	return pgxPool{p, nil}, err
}

func openPassBuddy(ctx context.Context, cfg Config, c *connectCounter) (_ pool, err error) {
	sem, err := semaphore.Open(ctx, cfg.RedisURL, semaphore.Config{
		Name:     cfg.Semaphore,
		Capacity: cfg.Capacity,
		Logger:   slog.New(slog.DiscardHandler), // the parent reports for the fleet
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeSemaphore(sem)
		}
	}()
	opts := passbuddy.Config{Scope: passbuddy.PerConnection}
	if cfg.Scope == ScopeCheckout {
		opts.Scope = passbuddy.PerCheckout
	}
	if cfg.Integration == SQL {
		connector, err := sqlConnector(cfg, c)
		if err != nil {
			return nil, err
		}
		return openSQL(passbuddy.WrapConnector(connector, sem, opts), cfg, sem), nil
	}
	pgxCfg, err := pgxConfig(cfg, c)
	if err != nil {
		return nil, err
	}
	p, err := passpool.NewWithConfig(ctx, pgxCfg, sem, opts)
	if err != nil {
		return nil, err
	}
	return pgxPool{p, sem}, nil
}

func pgxConfig(cfg Config, c *connectCounter) (*pgxpool.Config, error) {
	pgxCfg, err := pgxpool.ParseConfig(cfg.PostgresURL)
	if err != nil {
		return nil, err
	}
	pgxCfg.MaxConns = int32(cfg.MaxConns)
	pgxCfg.ConnConfig.DialFunc = c.dial(pgxCfg.ConnConfig.DialFunc)
	return pgxCfg, nil
}

type pgxPool struct {
	*pgxpool.Pool
	sem io.Closer // nil without PassBuddy
}

func (p pgxPool) checkout(ctx context.Context) (connection, error) {
	conn, err := p.Acquire(ctx)
	return pgxConn{conn}, err
}

func (p pgxPool) close() {
	p.Close()
	closeSemaphore(p.sem)
}

type pgxConn struct{ *pgxpool.Conn }

func (c pgxConn) operate(ctx context.Context, op Operation) error {
	var n int64
	switch {
	case op.Row != "":
		return c.QueryRow(ctx, op.Row).Scan(&n)
	case op.Transaction != nil:
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			key := 1 + rand.IntN(TransactionKeys)
			for _, statement := range op.Transaction {
				if err := tx.QueryRow(ctx, statement, key).Scan(&n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	_, err := c.Exec(ctx, op.Exec)
	return err
}

func (c pgxConn) giveBack() { c.Release() }

type sqlPool struct {
	*sql.DB
	sem io.Closer // nil without PassBuddy
}

// sqlConnector is stdlib's connector for the worker's connections, with the counter in its dial
// function.
func sqlConnector(cfg Config, c *connectCounter) (driver.Connector, error) {
	connCfg, err := pgx.ParseConfig(cfg.PostgresURL)
	if err != nil {
		return nil, err
	}
	connCfg.DialFunc = c.dial(connCfg.DialFunc)
	return stdlib.GetConnector(*connCfg), nil
}

func openSQL(connector driver.Connector, cfg Config, sem io.Closer) pool {
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(cfg.MaxConns)
	db.SetMaxIdleConns(cfg.MaxConns)
	return sqlPool{db, sem}
}

func (p sqlPool) checkout(ctx context.Context) (connection, error) {
	conn, err := p.Conn(ctx)
	return sqlConn{conn}, err
}

func (p sqlPool) close() {
	_ = p.Close()
	closeSemaphore(p.sem)
}

func closeSemaphore(sem io.Closer) {
	if sem != nil {
		_ = sem.Close() // its leases end by themselves if Redis is unreachable
	}
}

type sqlConn struct{ *sql.Conn }

func (c sqlConn) operate(ctx context.Context, op Operation) error {
	var n int64
	switch {
	case op.Row != "":
		return c.QueryRowContext(ctx, op.Row).Scan(&n)
	case op.Transaction != nil:
		tx, err := c.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		key := 1 + rand.IntN(TransactionKeys)
		for _, statement := range op.Transaction {
			if err := tx.QueryRowContext(ctx, statement, key).Scan(&n); err != nil {
				_ = tx.Rollback()
				return err
			}
		}
		return tx.Commit()
	}
	_, err := c.ExecContext(ctx, op.Exec)
	return err
}

func (c sqlConn) giveBack() { _ = c.Close() }
