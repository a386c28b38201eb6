package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// pool is what a worker's goroutines borrow connections from.
type pool interface {
	checkout(ctx context.Context) (connection, error)
	close()
}

type connection interface {
	exec(ctx context.Context, query string) error
	giveBack()
}

// openPool opens the pool that cfg asks for. The difference that PassBuddy makes to the code is here.
func openPool(ctx context.Context, cfg workerConfig) (pool, error) {
	if cfg.RedisURL == "" {
		if cfg.Integration == integrationSQL {
			return openSQL("pgx", cfg, nil)
		}
		p, err := pgxpool.New(ctx, cfg.PostgresURL)
		return pgxPool{p, nil}, err
	}

	sem, err := semaphore.Open(ctx, cfg.RedisURL, semaphore.Config{
		Name:     cfg.Semaphore,
		Capacity: cfg.Capacity,
		Logger:   slog.New(slog.DiscardHandler), // the table is the demo's voice
	})
	if err != nil {
		return nil, err
	}
	opts := passbuddy.Config{Scope: passbuddy.PerConnection}
	if cfg.Scope == scopeCheckout {
		opts.Scope = passbuddy.PerCheckout
	}
	if cfg.Integration == integrationSQL {
		passbuddy.Register("passbuddy", stdlib.GetDefaultDriver(), sem, opts)
		return openSQL("passbuddy", cfg, sem)
	}
	p, err := passpool.New(ctx, cfg.PostgresURL, sem, opts)
	if err != nil {
		return nil, fmt.Errorf("%w (and closing: %v)", err, sem.Close())
	}
	return pgxPool{p, sem}, nil
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

func (c pgxConn) exec(ctx context.Context, query string) error {
	_, err := c.Exec(ctx, query)
	return err
}

func (c pgxConn) giveBack() { c.Release() }

type sqlPool struct {
	*sql.DB
	sem io.Closer // nil without PassBuddy
}

func openSQL(driverName string, cfg workerConfig, sem io.Closer) (pool, error) {
	db, err := sql.Open(driverName, cfg.PostgresURL)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(cfg.Goroutines)
	db.SetMaxIdleConns(cfg.Goroutines)
	return sqlPool{db, sem}, nil
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
		_ = sem.Close() // its leases end by themselves should Redis be out of reach
	}
}

type sqlConn struct{ *sql.Conn }

func (c sqlConn) exec(ctx context.Context, query string) error {
	_, err := c.ExecContext(ctx, query)
	return err
}

func (c sqlConn) giveBack() { _ = c.Close() }
