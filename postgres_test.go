package passbuddy_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

var servers = sync.OnceValues(func() (*stack, error) {
	ctx := context.Background()
	pg, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{})
	if err != nil {
		return nil, err
	}
	r, err := throwaway.StartRedis(ctx, throwaway.RedisOptions{})
	if err != nil {
		return nil, errors.Join(err, pg.Stop())
	}
	return &stack{pg, r}, nil
})

type stack struct {
	postgres *throwaway.Postgres
	redis    *throwaway.Redis
}

var started atomic.Bool

func TestMain(m *testing.M) {
	code := m.Run()
	if started.Load() {
		if s, err := servers(); err == nil {
			_ = s.postgres.Stop()
			_ = s.redis.Stop()
		}
	}
	if code == 0 {
		err := goleak.Find()
		// It gives goroutines a second to end. A busy machine may need more, and a connection that
		// it put in doubt while its pool was closed needs 15 s.
		for range 29 {
			if err == nil {
				break
			}
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func start(t testing.TB) *stack {
	t.Helper()
	started.Store(true)
	s, err := servers()
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("needs a real server (make test installs it): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// session opens a session. Its leases are long: a machine that stalls for some seconds must not
// lose one that no test wants to lose.
func (s *stack) session(t testing.TB, capacity int) *semaphore.Semaphore {
	t.Helper()
	return s.sessionFor(t, capacity, time.Minute)
}

// sessionFor is session with leases of the given length.
func (s *stack) sessionFor(t testing.TB, capacity int, ttl time.Duration) *semaphore.Semaphore {
	t.Helper()
	sem, err := semaphore.Open(context.Background(), s.redis.URL(), semaphore.Config{
		Name: t.Name(), Capacity: capacity, TTL: ttl, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return sem
}

// watch samples how many backends the role has, until the caller calls the result, which returns
// the peak.
func (s *stack) watch(t testing.TB) (peak func() int) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), s.postgres.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		most := 0
		defer func() { done <- most }()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var n int
			if err := c.QueryRow(context.Background(),
				"select count(*) from pg_stat_activity where usename = $1",
				throwaway.Role).Scan(&n); err != nil {
				t.Error(err)
				return
			}
			most = max(most, n)
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() int {
		close(stop)
		most := <-done
		_ = c.Close(context.Background())
		return most
	}
}

// eventually polls until the state of a server, which sends no signal, is as wanted.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	var waited time.Duration
	for began := time.Now(); !holds(); began = time.Now() {
		if waited > 10*time.Second {
			t.Fatalf("not within 10s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
		waited += min(time.Since(began), time.Second/2) // however long the machine stalled
	}
}
