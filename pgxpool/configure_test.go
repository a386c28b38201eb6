package pgxpool_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

func TestBadInput(t *testing.T) {
	f := newFleet(t, 1)
	sem := f.semaphore()
	closed := f.semaphore()
	closed.Close()
	configured := f.config("")
	ok(t, passpool.Configure(configured, sem, passbuddy.Config{}))
	for want, try := range map[string]func() error{
		"config is nil": func() error {
			return passpool.Configure(nil, sem, passbuddy.Config{})
		},
		"sem is nil": func() error {
			return passpool.Configure(f.config(""), nil, passbuddy.Config{})
		},
		"ParseConfig": func() error {
			return passpool.Configure(&pgxpool.Config{}, sem, passbuddy.Config{})
		},
		"configured already": func() error {
			return passpool.Configure(configured, sem, passbuddy.Config{})
		},
		"AcquireTimeout": func() error {
			return passpool.Configure(f.config(""), sem, passbuddy.Config{AcquireTimeout: -1})
		},
		"closed": func() error {
			return passpool.Configure(f.config(""), closed, passbuddy.Config{})
		},
		"MaxSize": func() error {
			cfg := f.config("")
			cfg.MaxConns = 0
			_, err := passpool.NewWithConfig(ctxb, cfg, sem, passbuddy.Config{})
			return err
		},
		"cannot parse": func() error {
			_, err := passpool.New(ctxb, "port=x", sem, passbuddy.Config{})
			return err
		},
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	parsedByHand := &pgxpool.Config{ConnConfig: f.config("").ConnConfig, MaxConns: 1}
	if err := passpool.Configure(parsedByHand, sem, passbuddy.Config{}); err == nil {
		t.Error("a config that pgx would panic on was accepted")
	}
	cfg := f.config("")
	if err := passpool.Configure(cfg, closed, passbuddy.Config{}); !errors.Is(err,
		semaphore.ErrClosed) {
		t.Error(err)
	}
	if cfg.ConnConfig.Tracer != nil || cfg.BeforeConnect != nil {
		t.Error("a refused config was changed")
	}
}

// TestCallersContext: a caller that stops waiting gets both reasons, at once, and leaves nothing in
// the queue.
func TestCallersContext(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			f := newFleet(t, 1)
			sem := f.semaphore()
			holder := f.pool(sem, passbuddy.Config{Scope: scope})
			c, err := holder.Acquire(ctxb)
			ok(t, err)
			defer c.Release()
			pool := f.process(passbuddy.Config{Scope: scope})
			impatient := f.process(passbuddy.Config{Scope: scope,
				AcquireTimeout: 100 * time.Millisecond})

			err = refused(func(ctx context.Context) error {
				_, err := pool.Exec(ctx, "select 1")
				return err
			})
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, semaphore.ErrCapacity) {
				t.Error(err)
			}
			cause := errors.New("the user left")
			cancelled, cancelCause := context.WithCancelCause(ctxb)
			result := make(chan error)
			go func() { result <- pool.Ping(cancelled) }()
			eventually(t, "the caller waits", func() bool {
				return passpool.Figures(pool).Waiting == 1
			})
			cancelCause(cause)
			if err := <-result; !errors.Is(err, context.Canceled) ||
				!errors.Is(err, semaphore.ErrCapacity) || !errors.Is(err, cause) {
				t.Error(err)
			}
			if err := impatient.Ping(ctxb); !errors.Is(err, semaphore.ErrCapacity) ||
				errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			eventually(t, "nobody waits in the fleet", func() bool {
				snap, err := sem.Snapshot(ctxb)
				ok(t, err)
				return len(snap.Waiters) == 0 && snap.Held == 1
			})
		})
	}
}

// spy is a user's tracer of everything a pool does.
type spy struct {
	mu    sync.Mutex
	calls []string
	wait  time.Duration
}

type spyKey struct{}

func (s *spy) call(name string) {
	s.mu.Lock()
	s.calls = append(s.calls, name)
	s.mu.Unlock()
}

func (s *spy) TraceQueryStart(ctx context.Context, _ *pgx.Conn,
	_ pgx.TraceQueryStartData) context.Context {
	s.call("query")
	return ctx
}
func (s *spy) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {
	s.call("query end")
}
func (s *spy) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	s.call("connect")
	return ctx
}
func (s *spy) TraceConnectEnd(context.Context, pgx.TraceConnectEndData) { s.call("connect end") }
func (s *spy) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool,
	_ pgxpool.TraceAcquireStartData) context.Context {
	s.call("acquire")
	return context.WithValue(ctx, spyKey{}, time.Now())
}
func (s *spy) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireEndData) {
	s.mu.Lock()
	s.wait = time.Since(ctx.Value(spyKey{}).(time.Time))
	s.mu.Unlock()
	s.call("acquire end")
}
func (s *spy) TraceRelease(*pgxpool.Pool, pgxpool.TraceReleaseData) { s.call("release") }

// TestUsersHooks: PassBuddy calls all of the user's hooks, in pgx's order, and a tracer sees the
// wait for a permit.
func TestUsersHooks(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			f := newFleet(t, 1)
			s := &spy{}
			released := make(chan struct{}, 1)
			hooks := func(cfg *pgxpool.Config) {
				cfg.ConnConfig.Tracer = s
				cfg.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
					if cfg.Tracer != pgx.QueryTracer(s) {
						t.Errorf("BeforeConnect sees the tracer %T", cfg.Tracer)
					}
					s.call("BeforeConnect")
					return nil
				}
				cfg.AfterConnect = func(context.Context, *pgx.Conn) error {
					s.call("AfterConnect")
					return nil
				}
				cfg.BeforeAcquire = func(context.Context, *pgx.Conn) bool {
					s.call("BeforeAcquire")
					return true
				}
				cfg.AfterRelease = func(*pgx.Conn) bool {
					s.call("AfterRelease")
					released <- struct{}{}
					return true
				}
				cfg.BeforeClose = func(*pgx.Conn) { s.call("BeforeClose") }
				cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool {
					s.call("ShouldPing")
					return false
				}
			}
			pool := f.process(passbuddy.Config{Scope: scope}, hooks)
			_, err := pool.Exec(ctxb, "select 1")
			ok(t, err)
			<-released
			pool.Close()
			want := []string{"acquire", "BeforeConnect", "connect", "connect end", "AfterConnect",
				"ShouldPing", "BeforeAcquire",
				"acquire end", "query", "query end", "release", "AfterRelease", "BeforeClose"}
			if !slices.Equal(s.calls, want) {
				t.Errorf("calls\n%v, want\n%v", s.calls, want)
			}

			c, err := f.process(passbuddy.Config{Scope: scope}).Acquire(ctxb)
			ok(t, err)
			pool = f.process(passbuddy.Config{Scope: scope}, hooks)
			result := make(chan error)
			go func() { result <- pool.Ping(ctxb) }()
			eventually(t, "the caller waits", func() bool {
				return passpool.Figures(pool).Waiting == 1
			})
			time.Sleep(50 * time.Millisecond) // the wait that the tracer should see
			c.Release()
			ok(t, <-result)
			<-released
			if s.wait < 50*time.Millisecond {
				t.Errorf("the tracer saw a wait of %v", s.wait)
			}
		})
	}
}

// TestAfterRelease: PassBuddy does not hand a connection on while the user's hook has it.
func TestAfterRelease(t *testing.T) {
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		f := newFleet(t, 1)
		pool := f.process(passbuddy.Config{Scope: scope}, func(cfg *pgxpool.Config) {
			n := 0
			cfg.AfterRelease = func(conn *pgx.Conn) bool {
				_, err := conn.Exec(ctxb, "select 1")
				n++
				return err == nil && n%5 > 0
			}
		})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range 10 {
					mixedQuery(ctxb, t, pool)
				}
			})
		}
		wg.Wait()
		f.works(f.process(passbuddy.Config{Scope: scope}))
	}
}

// TestStandaloneConnect: the user can connect with a pool's configuration by hand, without a
// permit.
func TestStandaloneConnect(t *testing.T) {
	f := newFleet(t, 1)
	s := &spy{}
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = s })
	ok(t, pool.Ping(ctxb))
	s.calls = nil
	conn, err := pgx.ConnectConfig(ctxb, pool.Config().ConnConfig)
	ok(t, err)
	defer conn.Close(ctxb)
	_, err = conn.Exec(ctxb, "select 1")
	ok(t, err)
	if want := []string{"connect", "connect end", "query", "query end"}; !slices.Equal(s.calls,
		want) {
		t.Errorf("calls %v", s.calls)
	}
}
