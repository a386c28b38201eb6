package pgxpool

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// New is pgx's New with the connections under sem.
func New(ctx context.Context, connString string, sem *semaphore.Semaphore, opts passbuddy.Config) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, err
	}
	return NewWithConfig(ctx, cfg, sem, opts)
}

// NewWithConfig is pgx's NewWithConfig with the connections under sem. It configures a copy: cfg
// can be used again.
func NewWithConfig(ctx context.Context, cfg *pgxpool.Config, sem *semaphore.Semaphore, opts passbuddy.Config) (*pgxpool.Pool, error) {
	if err := check(cfg, sem); err != nil {
		return nil, err
	}
	cfg = cfg.Copy()
	p, err := configure(cfg, sem, opts)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		p.share.Close()
		return nil, err
	}
	p.known.Store(pool)
	return pool, nil
}

// Configure sets the hooks of cfg, so that the pool that pgx makes of it holds its connections
// under sem. cfg must come from pgx's ParseConfig, and is for one pool: its copies share its
// permits.
//
// The hooks that cfg has already are kept: they run before PassBuddy's own, and a tracer of
// acquires sees the wait for a permit too. Hooks that are set later replace PassBuddy's and break
// the promise; set them before. An AfterRelease hook makes Release asynchronous in pgx; the permit
// is then handed on when the hook is done.
//
// It returns an error, and leaves cfg as it was, if cfg or sem is nil, cfg was not made by
// ParseConfig or is configured already, opts are refused, or sem is closed (matching
// [semaphore.ErrClosed]).
func Configure(cfg *pgxpool.Config, sem *semaphore.Semaphore, opts passbuddy.Config) error {
	if err := check(cfg, sem); err != nil {
		return err
	}
	_, err := configure(cfg, sem, opts)
	return err
}

func check(cfg *pgxpool.Config, sem *semaphore.Semaphore) error {
	switch {
	case cfg == nil:
		return errors.New("pgxpool: cfg is nil")
	case sem == nil:
		return errors.New("pgxpool: sem is nil")
	case cfg.ConnConfig == nil || !parsed(cfg) || !parsed(cfg.ConnConfig):
		return errors.New("pgxpool: cfg was not made by pgxpool.ParseConfig")
	}
	if _, ok := cfg.ConnConfig.Tracer.(*tracer); ok {
		return errors.New("pgxpool: cfg is configured already; call Configure once for each pool, on a Config of its own")
	}
	return nil
}

// parsed reports whether pgx would accept cfg: it panics otherwise. The mark is not exported;
// should it be renamed one day, pgx's own check remains.
func parsed(cfg any) bool {
	mark := reflect.ValueOf(cfg).Elem().FieldByName("createdByParseConfig")
	return !mark.IsValid() || mark.Kind() != reflect.Bool || mark.Bool()
}

func configure(cfg *pgxpool.Config, sem *semaphore.Semaphore, opts passbuddy.Config) (*pool, error) {
	return configureWith(cfg, opts, func(a *allotment.Allotment) (share, error) { return a.Join(sem.Engine(engine.Seam{})) })
}

// configureWith is configure with any engine.
func configureWith(cfg *pgxpool.Config, opts passbuddy.Config, join func(*allotment.Allotment) (share, error)) (*pool, error) {
	opts, err := opts.WithDefaults()
	if err != nil {
		return nil, err
	}
	p := &pool{
		perCheckout:    opts.Scope == passbuddy.PerCheckout,
		fence:          opts.Fence,
		acquireTimeout: opts.AcquireTimeout,
		maxConns:       cfg.MaxConns,
		minConns:       int(cfg.MinConns),
		maxIdle:        cfg.MaxConnIdleTime,
		user: hooks{
			tracer:        cfg.ConnConfig.Tracer,
			beforeConnect: cfg.BeforeConnect,
			afterConnect:  cfg.AfterConnect,
			prepareConn:   cfg.PrepareConn,
			afterRelease:  cfg.AfterRelease,
			beforeClose:   cfg.BeforeClose,
			shouldPing:    cfg.ShouldPing,
		},
	}
	if p.user.prepareConn == nil && cfg.BeforeAcquire != nil {
		before := cfg.BeforeAcquire
		p.user.prepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) { return before(ctx, conn), nil }
	}
	p.allot = allotment.New(p, allotment.Options{
		PerCheckout:    p.perCheckout,
		AcquireTimeout: opts.AcquireTimeout,
		KeepOnLoss:     opts.KeepOnLoss,
		FallbackConns:  opts.FallbackConns,
		Fence:          opts.Fence,
		MaxConns:       int(cfg.MaxConns),
	})
	if p.share, err = join(p.allot); err != nil {
		return nil, fmt.Errorf("pgxpool: %w", err)
	}
	p.allot.Attach(p.share)

	t := &tracer{Tracer: new(multitracer.Tracer), pool: p}
	if p.user.tracer != nil {
		t.Tracer = multitracer.New(p.user.tracer)
		t.acquire, _ = p.user.tracer.(pgxpool.AcquireTracer)
		t.release, _ = p.user.tracer.(pgxpool.ReleaseTracer)
	}
	t.plain = t.acquire == nil && !p.perCheckout
	cfg.ConnConfig.Tracer, p.tracer = t, t
	cfg.BeforeConnect = p.beforeConnect
	cfg.AfterConnect = p.afterConnect
	cfg.BeforeClose = p.beforeClose
	cfg.PrepareConn = p.prepareConn
	cfg.ShouldPing = p.shouldPing
	if p.user.afterRelease != nil {
		cfg.AfterRelease = p.afterRelease
	}
	return p, nil
}

// hooks are the user's own, as they were when we were called. Each may be nil.
type hooks struct {
	tracer        pgx.QueryTracer
	beforeConnect func(context.Context, *pgx.ConnConfig) error
	afterConnect  func(context.Context, *pgx.Conn) error
	prepareConn   func(context.Context, *pgx.Conn) (bool, error)
	afterRelease  func(*pgx.Conn) bool
	beforeClose   func(*pgx.Conn)
	shouldPing    func(context.Context, pgxpool.ShouldPingParams) bool
}

// pingAfter is pgx's default: connections that were idle for longer are pinged at checkout.
const pingAfter = time.Second
