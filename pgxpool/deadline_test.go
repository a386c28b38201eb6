package pgxpool

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/alicebob/miniredis/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// onePermit is an engine with one real permit, because the allotment checks its lease.
type onePermit struct {
	allot  *allotment.Allotment
	record func(context.Context) error
	only   *engine.Permit

	mu     sync.Mutex
	permit *engine.Permit // nil while the allotment has it, and once it is lost
	wanted bool
}

func newOnePermit(t *testing.T) *onePermit {
	t.Helper()
	m := miniredis.NewMiniRedis()
	client := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Protocol: 2, DisableIdentity: true,
		Dialer: func(context.Context, string, string) (net.Conn, error) { return m.Dial() },
	})
	sem, err := semaphore.New(context.Background(), client, semaphore.Config{
		Capacity: 1, TTL: 24 * time.Hour, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	permits, err := sem.Engine(engine.Seam{}).AcquireN(context.Background(), engine.Wait, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sem.Close()
		_ = client.Close()
		time.Sleep(2 * time.Second) // go-redis's dialling goroutines look once a second
		m.Close()
	})
	return &onePermit{only: permits[0], permit: permits[0]}
}

func (e *onePermit) Ask(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wanted = n > 0
	e.grant()
}

// grant delivers in the background, because the allotment's lock may be held. The caller holds mu.
func (e *onePermit) grant() {
	if p := e.permit; p != nil && e.wanted {
		e.permit, e.wanted = nil, false
		go e.allot.Granted([]*engine.Permit{p})
	}
}

func (e *onePermit) Give(p *engine.Permit) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.permit = p
	e.grant()
}

func (e *onePermit) Offer(int)           {}
func (e *onePermit) Moved(time.Duration) {}
func (e *onePermit) Stay(bool)           {}
func (e *onePermit) Full() bool          { return true }
func (e *onePermit) Err() error          { return nil }
func (e *onePermit) Close()              {}

func (e *onePermit) AtCapacity() error { return semaphore.ErrCapacity }

func (e *onePermit) Try(context.Context) (*engine.Permit, error) {
	return nil, semaphore.ErrCapacity
}

func (e *onePermit) RecordBackend(*engine.Permit, string) func(context.Context) error {
	return e.record
}

func (e *onePermit) ClearBackend(*engine.Permit) func(context.Context) error { return nil }

// stations is a pool with one permit. Once it is slow, a backend takes 0.2s to end, a dial takes
// 1s, and a record never ends.
type stations struct {
	engine  *onePermit
	pool    *pgxpool.Pool
	slow    atomic.Bool
	dialled func() // after a slow dial
	dials   atomic.Int32
}

const stationsTimeout = 10 * time.Second

func newStations(t *testing.T, cfg passbuddy.Config) *stations {
	t.Helper()
	s := &stations{engine: newOnePermit(t), dialled: func() {}}
	s.engine.record = func(ctx context.Context) error {
		if s.slow.Load() {
			<-ctx.Done()
		}
		return ctx.Err()
	}
	pg := &fakepg.Server{OnEnd: func() { time.Sleep(200 * time.Millisecond) }}
	config, err := pgxpool.ParseConfig(fakepg.DSN)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns, config.MaxConnLifetime = 2, 3*time.Second
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if s.slow.Load() {
			time.Sleep(time.Second)
			s.dialled()
		}
		s.dials.Add(1)
		return pg.Dial(ctx, network, addr)
	}
	cfg.AcquireTimeout = stationsTimeout
	p, err := configureWith(config, cfg, func(a *allotment.Allotment) error {
		s.engine.allot = a
		a.Attach(s.engine)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.pool, err = pgxpool.NewWithConfig(context.Background(), config); err != nil {
		t.Fatal(err)
	}
	p.known.Store(s.pool)
	return s
}

// AcquireTimeout is one deadline for all stations of a checkout: a turn, a permit, a dial, the
// record of its backend, and all again if the lease is lost meanwhile. A deadline that started anew
// at a station would let the caller wait longer, by the time of the earlier stations.
func TestDeadlineIsOneForAllStations(t *testing.T) {
	ctx := context.Background()
	acquire := func(s *stations) error {
		c, err := s.pool.Acquire(ctx)
		if err == nil {
			c.Release()
		}
		return err
	}
	connect := func(s *stations) error {
		c, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
		if err == nil {
			_ = c.Close(ctx)
		}
		return err
	}
	fenced := passbuddy.Config{Fence: true}
	for name, c := range map[string]struct {
		cfg   passbuddy.Config
		held  time.Duration // how long another caller has the only connection
		idle  time.Duration // how long it is then idle. After either it is too old
		lose  bool          // the lease is lost during the dial
		enter func(s *stations) error
	}{
		"a turn, a permit, a dial, a record":          {fenced, 6 * time.Second, 0, false, acquire},
		"a permit, a dial, a record":                  {fenced, 0, 6 * time.Second, false, acquire},
		"by hand: a turn, a permit, a dial, a record": {fenced, 6 * time.Second, 0, false, connect},
		"PerCheckout: a turn, a dial, a turn": {
			passbuddy.Config{Scope: passbuddy.PerCheckout}, 6 * time.Second, 0, true, acquire,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStations(t, c.cfg)
				if c.lose {
					s.dialled = func() { s.engine.allot.Lost(s.engine.only) }
				}
				held, err := s.pool.Acquire(ctx)
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(c.held, func() {
					s.slow.Store(c.idle == 0)
					held.Release()
				})
				time.Sleep(c.idle)
				s.slow.Store(c.idle > 0)
				began := time.Now()
				err = c.enter(s)
				if d := time.Since(began); err == nil || d != stationsTimeout {
					t.Errorf("waited %v, AcquireTimeout is %v: %v", d, stationsTimeout, err)
				}
				if n := s.dials.Load(); n != 2 {
					t.Errorf("dialled %d times, want 2: the test missed a station", n)
				}
				s.pool.Close()
				time.Sleep(time.Minute)
			})
		})
	}
}
