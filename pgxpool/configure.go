package pgxpool

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/semaphore"
)

// New is pgx's New with the connections under sem.
func New(
	ctx context.Context, connString string, sem *semaphore.Semaphore, cfg passbuddy.Config,
) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, err
	}
	return NewWithConfig(ctx, config, sem, cfg)
}

// NewWithConfig is pgx's NewWithConfig with the connections under sem. It configures a copy: config
// can be used again.
func NewWithConfig(
	ctx context.Context, config *pgxpool.Config, sem *semaphore.Semaphore, cfg passbuddy.Config,
) (*pgxpool.Pool, error) {
	if err := check(config, sem); err != nil {
		return nil, err
	}
	config = config.Copy()
	p, err := configure(config, sem, cfg)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		p.allot.Close()
		return nil, err
	}
	p.known.Store(pool)
	return pool, nil
}

// Configure sets the hooks of config, so that the pool that pgx makes of it holds its connections
// under sem. The config must come from pgx's ParseConfig, and is for one pool: its copies share its
// permits.
//
// The hooks that config has already are kept: they run before PassBuddy's own, and a tracer of
// acquires sees the wait for a permit too. Hooks that are set later replace PassBuddy's and break
// the promise; set them before. An AfterRelease hook makes Release asynchronous in pgx; the permit
// is then handed on when the hook is done.
//
// It leaves config as it was, and returns an error, if config or sem is nil, or config was not made
// by ParseConfig or is configured already. Other reasons are a cfg that is refused, and a sem that
// is closed (the error matches [semaphore.ErrClosed]).
func Configure(config *pgxpool.Config, sem *semaphore.Semaphore, cfg passbuddy.Config) error {
	if err := check(config, sem); err != nil {
		return err
	}
	_, err := configure(config, sem, cfg)
	return err
}

func check(config *pgxpool.Config, sem *semaphore.Semaphore) error {
	switch {
	case config == nil:
		return errors.New("pgxpool: config is nil")
	case sem == nil:
		return errors.New("pgxpool: sem is nil")
	case config.ConnConfig == nil || !parsed(config) || !parsed(config.ConnConfig):
		return errors.New("pgxpool: config was not made by pgxpool.ParseConfig")
	}
	if _, ok := config.ConnConfig.Tracer.(*tracer); ok {
		return errors.New("pgxpool: config is configured already; " +
			"call Configure once for each pool, on a Config of its own")
	}
	return nil
}

// parsed reports whether pgx would accept config: it panics otherwise. The mark is not exported;
// should it be renamed one day, pgx's own check remains.
func parsed(config any) bool {
	mark := reflect.ValueOf(config).Elem().FieldByName("createdByParseConfig")
	return !mark.IsValid() || mark.Kind() != reflect.Bool || mark.Bool()
}

// options are cfg as an allotment takes it, or an error that names the refused field.
func options(cfg passbuddy.Config) (allotment.Options, error) {
	if cfg.Scope > passbuddy.PerCheckout {
		return allotment.Options{}, fmt.Errorf(
			"passbuddy: Config.Scope is %v: it must be PerConnection or PerCheckout", cfg.Scope)
	}
	return allotment.Options{
		PerCheckout:    cfg.Scope == passbuddy.PerCheckout,
		Name:           cfg.PoolName,
		AcquireTimeout: cfg.AcquireTimeout,
		KeepOnLoss:     cfg.KeepOnLoss,
		FallbackConns:  cfg.FallbackConns,
		Fence:          cfg.Fence,
	}.Resolve()
}

// joinFunc joins an allotment to the engine.
type joinFunc func(*allotment.Allotment) error

func configure(
	config *pgxpool.Config, sem *semaphore.Semaphore, cfg passbuddy.Config,
) (*pool, error) {
	return configureWith(config, cfg,
		func(a *allotment.Allotment) error { return a.Join(sem.Engine(engine.Seam{})) })
}

// configureWith is configure with any engine.
func configureWith(config *pgxpool.Config, cfg passbuddy.Config, join joinFunc) (*pool, error) {
	opts, err := options(cfg)
	if err != nil {
		return nil, err
	}
	opts.MaxConns = int(config.MaxConns)
	if opts.Name == "" {
		opts.Name = backend.PoolName(&config.ConnConfig.Config)
	}
	p := &pool{opts: opts, user: *config, userTracer: config.ConnConfig.Tracer}
	if before := config.BeforeAcquire; p.user.PrepareConn == nil && before != nil {
		p.user.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			return before(ctx, conn), nil
		}
	}
	p.Lend = p.lend
	p.allot = allotment.New(p, opts)
	if err := join(p.allot); err != nil {
		return nil, fmt.Errorf("pgxpool: %w", err)
	}

	t := &tracer{Tracer: allOf(p.userTracer), pool: p}
	t.acquire, _ = p.userTracer.(pgxpool.AcquireTracer)
	t.release, _ = p.userTracer.(pgxpool.ReleaseTracer)
	t.plain = t.acquire == nil && !opts.PerCheckout
	config.ConnConfig.Tracer, p.tracer = t, t
	config.BeforeConnect = p.beforeConnect
	config.AfterConnect = p.afterConnect
	config.BeforeClose = p.beforeClose
	config.PrepareConn = p.prepareConn
	config.ShouldPing = p.shouldPing
	if p.user.AfterRelease != nil {
		config.AfterRelease = p.afterRelease
	}
	return p, nil
}

// pingAfter is pgx's default: connections that were idle for longer are pinged at checkout.
const pingAfter = time.Second
