package pgxpool_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/subset"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Each test here covers one way to leak a permit. The capacity is always 1: if a second process can
// still work, nothing leaked.

var ctxb = context.Background()

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// works checks that a caller can get the fleet's only permit before a timeout of 15 s, pgx's or
// ours, would give a leaked one back. On a slow machine an idle permit takes seconds to move.
func (f *fleet) works(pool *pgxpool.Pool) {
	f.t.Helper()
	ctx, cancel := patience(12 * time.Second)
	defer cancel()
	if _, err := pool.Exec(ctx, "select 1"); err != nil {
		f.t.Fatal("the permit was not given back: ", err)
	}
}

func TestConnectFails(t *testing.T) {
	f := newFleet(t, 1)
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	refused.Close()
	for name, break_ := range map[string]func(*pgxpool.Config){
		"nobody listens": func(cfg *pgxpool.Config) {
			cfg.ConnConfig.Port = uint16(refused.Addr().(*net.TCPAddr).Port)
			cfg.ConnConfig.Fallbacks = nil
		},
		"wrong password": func(cfg *pgxpool.Config) { cfg.ConnConfig.Password = "wrong" },
		"no such host":   func(cfg *pgxpool.Config) { cfg.ConnConfig.LookupFunc = noSuchHost },
		"BeforeConnect": func(cfg *pgxpool.Config) {
			cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return errHook }
		},
		"AfterConnect": func(cfg *pgxpool.Config) {
			cfg.AfterConnect = func(context.Context, *pgx.Conn) error { return errHook }
		},
		"pgconn.AfterConnect": func(cfg *pgxpool.Config) {
			cfg.ConnConfig.AfterConnect = func(context.Context, *pgconn.PgConn) error {
				return errHook
			}
		},
		"ValidateConnect": func(cfg *pgxpool.Config) {
			cfg.ConnConfig.ValidateConnect = func(context.Context, *pgconn.PgConn) error {
				return errHook
			}
		},
		"AfterNetConnect": func(cfg *pgxpool.Config) {
			cfg.ConnConfig.AfterNetConnect = func(context.Context, *pgconn.Config,
				net.Conn) (net.Conn, error) {
				return nil, errHook
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := *f
			f.t = t
			bad := f.process(passbuddy.Config{}, break_)
			for range 3 {
				if err := bad.Ping(ctxb); err == nil {
					t.Fatal("no error")
				}
			}
			f.works(f.process(passbuddy.Config{}))
			if got := passpool.Figures(bad); got != (allotment.Figures{}) {
				t.Errorf("left behind: %+v", got)
			}
		})
	}
}

func noSuchHost(context.Context, string) ([]string, error) {
	return nil, errors.New("no such host")
}

// TestCallerGivesUp: pgx goes on opening the connection although no caller waits for it any more,
// and keeps it idle.
func TestCallerGivesUp(t *testing.T) {
	f := newFleet(t, 1)
	dialling, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
		dial := cfg.ConnConfig.DialFunc
		cfg.ConnConfig.DialFunc = func(ctx context.Context, network,
			addr string) (net.Conn, error) {
			once.Do(func() { close(dialling); <-proceed })
			return dial(ctx, network, addr)
		}
	})
	ctx, cancel := context.WithCancel(ctxb)
	result := make(chan error)
	go func() { result <- pool.Ping(ctx) }()
	<-dialling
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if got := passpool.Figures(pool); got.Turns != 0 || got.Opening != 1 {
		t.Errorf("after the caller gave up: %+v, want no turn and 1 opening", got)
	}
	close(proceed)
	eventually(t, "the late connection lies idle", func() bool {
		return passpool.Figures(pool).Idle == 1
	})
	f.works(pool)
	if n := pool.Stat().NewConnsCount(); n != 1 {
		t.Errorf("%d connections were opened, want the late one used", n)
	}
	f.works(f.process(passbuddy.Config{}))
}

func TestHijack(t *testing.T) {
	f := newFleet(t, 1)
	other := f.process(passbuddy.Config{})
	end := map[string]func(conn *pgx.Conn){
		"closed": func(conn *pgx.Conn) { ok(t, conn.Close(ctxb)) },
		"closed twice": func(conn *pgx.Conn) {
			conn.Close(ctxb)
			conn.PgConn().Conn().Close()
		},
		"socket closed": func(conn *pgx.Conn) { conn.PgConn().Conn().Close() },
		"PgConn hijacked too": func(conn *pgx.Conn) {
			h, err := conn.PgConn().Hijack()
			ok(t, err)
			h.Conn.Close()
		},
		"dropped": func(conn *pgx.Conn) {},
	}
	for name, end := range end {
		t.Run(name, func(t *testing.T) {
			pool := f.process(passbuddy.Config{})
			func() {
				c, err := pool.Acquire(ctxb)
				ok(t, err)
				conn := c.Hijack()
				ok(t, conn.Ping(ctxb))
				if err := refused(other.Ping); !errors.Is(err, semaphore.ErrCapacity) ||
					!errors.Is(err, context.DeadlineExceeded) {
					t.Error("the permit did not stay with the hijacked connection: ", err)
				}
				end(conn)
			}()
			if name == "dropped" {
				eventually(t, "the dropped connection is collected", func() bool {
					runtime.GC()
					return passpool.Figures(pool).Out == 0
				})
			}
			f.works(other)
		})
	}
}

// TestHijackBeyondMaxConns: a hijacked connection leaves its place in the pool to another.
func TestHijackBeyondMaxConns(t *testing.T) {
	f := newFleet(t, 5)
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) { cfg.MaxConns = 1 })
	for range 3 {
		c, err := pool.Acquire(ctxb)
		ok(t, err)
		result := make(chan error)
		go func() { result <- pool.Ping(ctxb) }()
		eventually(t, "a second caller waits", func() bool {
			return passpool.Figures(pool).Waiting == 1
		})
		conn := c.Hijack()
		defer conn.Close(ctxb)
		ok(t, <-result)
	}
	if n := f.backends(); n != 4 {
		t.Errorf("%d backends, want 3 hijacked and 1 in the pool", n)
	}
}

// TestMaxConnsBoundsPermits: a process does not take more permits than its pool can use.
func TestMaxConnsBoundsPermits(t *testing.T) {
	f := newFleet(t, 4)
	sem := f.semaphore()
	pool := f.pool(sem, passbuddy.Config{}, func(cfg *pgxpool.Config) { cfg.MaxConns = 2 })
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					mixedQuery(ctxb, t, pool)
					if got := passpool.Figures(pool); got.Owned > 2 {
						t.Errorf("more permits than connections: %+v", got)
					}
				}
			}
		})
	}
	other := f.process(passbuddy.Config{})
	for range 2 {
		c, err := other.Acquire(ctxb)
		ok(t, err)
		defer c.Release()
	}
	eventually(t, "each process holds 2 permits", func() bool {
		snap, err := sem.Snapshot(ctxb)
		ok(t, err)
		return snap.Held == 4
	})
	close(stop)
	wg.Wait()
}

// TestCancelledStatement: pgx returns to its caller at once, and closes the connection up to 15
// seconds later. Until then the backend lives and the permit stays held.
func TestCancelledStatement(t *testing.T) {
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) { cancelledStatement(t, scope) })
	}
}

func cancelledStatement(t *testing.T, scope passbuddy.Scope) {
	f := newFleet(t, 1)
	cancelling, proceed := make(chan struct{}), make(chan struct{})
	pool := f.process(passbuddy.Config{Scope: scope}, func(cfg *pgxpool.Config) {
		dial := cfg.ConnConfig.DialFunc
		first := true
		cfg.ConnConfig.DialFunc = func(ctx context.Context, network,
			addr string) (net.Conn, error) {
			if !first { // the cancel request
				close(cancelling)
				<-proceed
			}
			first = false
			return dial(ctx, network, addr)
		}
	})
	ok(t, pool.Ping(ctxb))
	f.cancelsStatement(t, pool)
	<-cancelling
	other := f.process(passbuddy.Config{Scope: scope})
	if err := refused(other.Ping); !errors.Is(err, semaphore.ErrCapacity) {
		t.Error("the permit was given back before the backend was gone: ", err)
	}
	if n := f.backends(); n != 1 {
		t.Errorf("%d backends, want 1", n)
	}
	close(proceed)
	f.works(other)
	if n := f.backends(); n != 1 {
		t.Errorf("%d backends, want 1", n)
	}
}

// cancelsStatement cancels a statement that runs. A cancel request that overtakes its statement
// does nothing, and then pgx closes the connection 15 seconds later.
func (f *fleet) cancelsStatement(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctxb)
	defer cancel()
	ended := make(chan error, 1)
	go func() { _, err := pool.Exec(ctx, "select pg_sleep(60)"); ended <- err }()
	eventually(t, "the statement runs", func() bool {
		var n int
		ok(t, f.admin.QueryRow(ctxb, "select count(*) from pg_stat_activity where "+
			"application_name = $1 and wait_event = 'PgSleep'", f.name).Scan(&n))
		return n == 1
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// TestPoolDestroys covers the connections that the pool ends by itself.
func TestPoolDestroys(t *testing.T) {
	f := newFleet(t, 1)
	other := f.process(passbuddy.Config{})
	ends := map[string]func(t *testing.T, pool *pgxpool.Pool){
		"Reset": func(t *testing.T, pool *pgxpool.Pool) { pool.Reset() },
		"Reset while out": func(t *testing.T, pool *pgxpool.Pool) {
			c, err := pool.Acquire(ctxb)
			ok(t, err)
			pool.Reset()
			c.Release()
		},
		"Close": func(t *testing.T, pool *pgxpool.Pool) { pool.Close() },
		"in a transaction": func(t *testing.T, pool *pgxpool.Pool) {
			_, err := pool.Exec(ctxb, "begin")
			ok(t, err)
		},
		"busy": func(t *testing.T, pool *pgxpool.Pool) {
			c, err := pool.Acquire(ctxb)
			ok(t, err)
			_, err = c.Query(ctxb, "select generate_series(1, 1000000)")
			ok(t, err)
			c.Release()
		},
		"terminated": func(t *testing.T, pool *pgxpool.Pool) {
			if _, err := pool.Exec(ctxb,
				"select pg_terminate_backend(pg_backend_pid())"); err == nil {
				t.Error("no error")
			}
		},
		"closed by its user": func(t *testing.T, pool *pgxpool.Pool) {
			c, err := pool.Acquire(ctxb)
			ok(t, err)
			ok(t, c.Conn().Close(ctxb))
			c.Release()
		},
		"PrepareConn refuses": func(t *testing.T, pool *pgxpool.Pool) {
			if err := pool.Ping(context.WithValue(ctxb, refuse{}, true)); !errors.Is(err, errHook) {
				t.Error(err)
			}
		},
		"BeforeAcquire and AcquireAllIdle": func(t *testing.T, pool *pgxpool.Pool) {
			for _, c := range pool.AcquireAllIdle(ctxb) {
				if got := passpool.Figures(pool); got.Out != 1 || got.Turns != 1 {
					t.Errorf("%+v, want 1 turn, and its slot out", got)
				}
				c.Release()
			}
		},
		"AcquireAllIdle hijacked": func(t *testing.T, pool *pgxpool.Pool) {
			for _, c := range pool.AcquireAllIdle(ctxb) {
				ok(t, c.Hijack().Close(ctxb))
			}
		},
	}
	for _, name := range subset.Of(t, 5, slices.Sorted(maps.Keys(ends))) {
		end := ends[name]
		t.Run(name, func(t *testing.T) {
			pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
				cfg.PrepareConn = func(ctx context.Context, _ *pgx.Conn) (bool, error) {
					if ctx.Value(refuse{}) != nil {
						return false, errHook
					}
					return true, nil
				}
			})
			ok(t, pool.Ping(ctxb))
			end(t, pool)
			f.works(other)
			eventually(t, "nothing is left of the first pool", func() bool {
				return passpool.Figures(pool) == allotment.Figures{}
			})
		})
	}
}

type refuse struct{}

// TestLifetime: connections expire at their return and while idle.
func TestLifetime(t *testing.T) {
	f := newFleet(t, 1)
	pool := f.process(passbuddy.Config{}, func(cfg *pgxpool.Config) {
		cfg.MaxConnLifetime = 30 * time.Millisecond
	})
	for range 20 {
		_, err := pool.Exec(ctxb, "select pg_sleep(0.01)")
		ok(t, err)
	}
	if n := pool.Stat().MaxLifetimeDestroyCount(); n == 0 {
		t.Error("no connection expired")
	}
	if n := f.backends(); n > 1 {
		t.Errorf("%d backends, want at most 1", n)
	}
	f.works(f.process(passbuddy.Config{}))
}
