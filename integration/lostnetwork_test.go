package integration

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// execFunc runs one statement over a pool.
type execFunc func(ctx context.Context, sql string) error

// pools are the kinds of pools whose sockets the library follows. Each closes its pool with the
// test.
var pools = map[string]func(t *testing.T, url string, sem *semaphore.Semaphore,
	cfg passbuddy.Config) execFunc{
	"pgxpool": func(t *testing.T, url string, sem *semaphore.Semaphore,
		cfg passbuddy.Config) execFunc {
		config, err := pgxpool.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		config.MaxConns = int32(sem.Engine(engine.Seam{}).Capacity())
		pool, err := passpool.NewWithConfig(t.Context(), config, sem, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return func(ctx context.Context, sql string) error {
			_, err := pool.Exec(ctx, sql)
			return err
		}
	},
	"stdlib": func(t *testing.T, url string, sem *semaphore.Semaphore,
		cfg passbuddy.Config) execFunc {
		config, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		return execDB(t, passbuddy.OpenDB(stdlib.GetConnector(*config), sem, cfg))
	},
	"pq": func(t *testing.T, url string, sem *semaphore.Semaphore, cfg passbuddy.Config) execFunc {
		c, err := pq.NewConnector(url)
		if err != nil {
			t.Fatal(err)
		}
		c.Dialer(&passbuddy.Dialer{})
		return execDB(t, passbuddy.OpenDB(c, sem, cfg))
	},
}

func execDB(t *testing.T, db *sql.DB) execFunc {
	t.Cleanup(func() { _ = db.Close() })
	return func(ctx context.Context, sql string) error {
		_, err := db.ExecContext(ctx, sql)
		return err
	}
}

func (s *servers) joins(t *testing.T, capacity int) *semaphore.Semaphore {
	t.Helper()
	name := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
	sem, err := semaphore.Open(t.Context(), s.redis.URL(), semaphore.Config{Name: name,
		Capacity: capacity, TTL: time.Minute, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sem.Close() })
	return sem
}

// hungHost accepts connections, sends each the bytes given, and then sends nothing more.
func hungHost(t *testing.T, answer []byte) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	t.Cleanup(func() { l.Close(); conns.Wait() })
	conns.Go(func() {
		var open []net.Conn
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open = append(open, c)
			_, _ = c.Write(answer)
		}
	})
	return l.Addr().String()
}

// TestHostThatHangs: the first host of the DSN accepts connections, and goes no further. The second
// host serves after connect_timeout, as with a bare pool, even where the first dial holds the only
// permit.
func TestHostThatHangs(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startServers(t, 0)
	hosts := map[string]string{
		"silent": hungHost(t, nil),
		// It asks for a password, and does not answer it.
		"authentication": hungHost(t, []byte{'R', 0, 0, 0, 8, 0, 0, 0, 3}),
	}
	type hang struct {
		host, client string
		capacity     int
		scope        passbuddy.Scope
	}
	var all []hang
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		for _, client := range slices.Sorted(maps.Keys(pools)) {
			for _, capacity := range []int{1, 5} {
				for _, scope := range []passbuddy.Scope{passbuddy.PerConnection,
					passbuddy.PerCheckout} {
					all = append(all, hang{host, client, capacity, scope})
				}
			}
		}
	}
	for _, h := range subset.Of(t, 8, all) {
		t.Run(fmt.Sprintf("%s/%s/%d/%v", h.host, h.client, h.capacity, h.scope),
			func(t *testing.T) {
				t.Parallel()
				exec := pools[h.client](t, s.behind(t, hosts[h.host])+" connect_timeout=4",
					s.joins(t, h.capacity), passbuddy.Config{Scope: h.scope})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began := time.Now()
				if err := exec(ctx, "select 1"); err != nil {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
				t.Logf("served after %v", time.Since(began))
			})
	}
}

// behind returns a DSN with addr as the first host, and the server as the second.
func (s *servers) behind(t *testing.T, addr string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pgx.ParseConfig(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("host=%s,%s port=%s,%d user=%s password=%s dbname=%s sslmode=disable", host,
		c.Host, port, c.Port, c.User, c.Password, c.Database)
}

// TestForgottenTry: lib/pq leaves open the socket on which the server refused TLS, and dials again.
// The permit belongs to the connection that the attempt returned, whatever becomes of the first
// socket.
func TestForgottenTry(t *testing.T) {
	t.Parallel() // it mostly waits
	const capacity = 3
	s := startServers(t, 0)
	url := strings.Replace(s.postgres.URL(), "sslmode=disable", "sslmode=prefer", 1)
	sem := s.joins(t, capacity)
	var open []*sql.Tx
	defer func() {
		for _, tx := range open {
			_ = tx.Rollback()
		}
	}()
	// The first process is served, if slowly. The second one waits for what the first one has.
	for _, patience := range []time.Duration{time.Minute, 300 * time.Millisecond} {
		c, err := pq.NewConnector(url)
		if err != nil {
			t.Fatal(err)
		}
		c.Dialer(&passbuddy.Dialer{})
		db := passbuddy.OpenDB(c, sem, passbuddy.Config{AcquireTimeout: patience})
		defer db.Close()
		for range capacity {
			if tx, err := db.Begin(); err == nil {
				open = append(open, tx)
			}
		}
		for range 5 {
			runtime.GC()
			time.Sleep(20 * time.Millisecond)
		}
	}
	if n := s.backendCount(t); n > capacity || len(open) != capacity {
		t.Errorf("%d backends, %d transactions, capacity %d", n, len(open), capacity)
	}
	for _, tx := range open {
		if _, err := tx.Exec("select 1"); err != nil {
			t.Error("a transaction failed though its lease was not lost: ", err)
		}
	}
}

// TestLostConnections: the network forgets connections, or resets our side of them alone, while the
// server goes on. The pool ends their backends over a new connection, so callers are served soon.
// The backends never exceed the capacity, but for that new connection's.
func TestLostConnections(t *testing.T) {
	t.Parallel() // it mostly waits
	const capacity = 4
	configs := map[string]passbuddy.Config{
		"": {}, "fence": {Fence: true}, "per checkout": {Scope: passbuddy.PerCheckout},
	}
	faults := map[string]func(*throwaway.Proxy){"forgotten": (*throwaway.Proxy).Forget,
		"reset": (*throwaway.Proxy).Orphan}
	type loss struct{ fault, client, config string }
	var losses []loss
	for _, fault := range slices.Sorted(maps.Keys(faults)) {
		for _, client := range []string{"pgxpool", "stdlib"} {
			for _, config := range slices.Sorted(maps.Keys(configs)) {
				losses = append(losses, loss{fault, client, config})
			}
		}
	}
	for _, l := range subset.Of(t, 4, losses) {
		t.Run(fmt.Sprintf("%s/%s/%s", l.fault, l.client, l.config), func(t *testing.T) {
			t.Parallel() // they mostly wait
			cfg, lose := configs[l.config], faults[l.fault]
			s := startServers(t, 0)
			proxy, err := throwaway.StartProxy(s.postgres.Addr())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = proxy.Close() })
			exec := pools[l.client](t, strings.Replace(s.postgres.URL(), s.postgres.Addr(),
				proxy.Addr(), 1), s.joins(t, capacity), cfg)
			all := func() bool {
				var served atomic.Int32
				var callers sync.WaitGroup
				for range capacity {
					callers.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						defer cancel()
						if exec(ctx, "select pg_sleep(0.1)") == nil {
							served.Add(1)
						}
					})
				}
				callers.Wait()
				return served.Load() == capacity
			}
			for began := time.Now(); !all(); {
				if time.Since(began) > time.Minute {
					t.Fatal("no caller was served before the fault")
				}
			}
			lose(proxy)
			began := time.Now()
			for !all() && time.Since(began) < time.Minute {
			}
			took := time.Since(began)
			t.Logf("served after %v", took)
			if took > 12*time.Second { // pgx's own clean-up takes 15 s.
				t.Errorf("served after %v", took)
			}
			// PerCheckout counts no idle connection, so it does not count one that was lost
			// while idle.
			if n := s.backendCount(t); n > capacity &&
				cfg.Scope == passbuddy.PerConnection {
				t.Errorf("%d backends, capacity %d", n, capacity)
			}
		})
	}
}
