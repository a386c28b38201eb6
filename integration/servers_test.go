package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

var loadFor = flag.Duration("load", 2*time.Second, "how long each fleet runs")

// servers are a Postgres and a Redis of the test's own.
type servers struct {
	postgres    *throwaway.Postgres
	redis       *throwaway.Redis
	admin       *pgx.Conn
	redisClient *redis.Client
}

func startServers(t testing.TB, maxConnections int) *servers {
	t.Helper()
	return startServersWith(t, throwaway.PostgresOptions{MaxConnections: maxConnections})
}

func startServersWith(t testing.TB, opts throwaway.PostgresOptions) *servers {
	t.Helper()
	s := &servers{}
	var err error
	if s.postgres, err = throwaway.StartPostgres(t.Context(), opts); err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = s.postgres.Stop() })
	if s.redis, err = throwaway.StartRedis(t.Context(),
		throwaway.RedisOptions{Apart: opts.Apart}); err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = s.redis.Stop() })
	if s.admin, err = pgx.Connect(t.Context(), s.postgres.AdminURL()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.admin.Close(context.Background()) })
	s.redisClient = redis.NewClient(&redis.Options{Addr: s.redis.Addr()})
	t.Cleanup(func() { _ = s.redisClient.Close() })
	return s
}

func skipIfMissing(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skipf("this test needs a real server: %v (make test installs it)", err)
	}
	t.Fatal(err)
}

// witness samples pg_stat_activity until its context ends.
type witness struct {
	mu      sync.Mutex
	samples []int
	err     error
	done    chan struct{}
}

const backends = `select count(*) from pg_stat_activity where usename = '` + throwaway.Role +
	`' and backend_type = 'client backend'`

func (s *servers) watch(ctx context.Context) *witness {
	w := &witness{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var n int
			err := s.admin.QueryRow(context.WithoutCancel(ctx), backends).Scan(&n)
			w.mu.Lock()
			w.samples = append(w.samples, n)
			w.err = errors.Join(w.err, err)
			w.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return w
}

// reaches waits until the witness has seen n backends at once, and otherwise for as long as limit.
// It also returns how many there were at last.
func (w *witness) reaches(n int, limit time.Duration) (last int, yes bool) {
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		late := time.Now().After(deadline)
		w.mu.Lock()
		yes = slices.ContainsFunc(w.samples, func(seen int) bool { return seen >= n })
		if len(w.samples) > 0 {
			last = w.samples[len(w.samples)-1]
		}
		w.mu.Unlock()
		if yes || late {
			return last, yes
		}
	}
}

// peak ends the witness and returns the most backends it saw, and their mean.
func (w *witness) peak(t *testing.T) (peak int, mean float64) {
	t.Helper()
	<-w.done
	if w.err != nil {
		t.Fatalf("sampling: %v", w.err)
	}
	sum := 0
	for _, n := range w.samples {
		peak = max(peak, n)
		sum += n
	}
	return peak, float64(sum) / float64(len(w.samples))
}

// backendCount returns how many backends of the fleet there are now.
func (s *servers) backendCount(t *testing.T) int {
	t.Helper()
	var n int
	if err := s.admin.QueryRow(t.Context(), backends).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// sessions returns how many connections Postgres has ever accepted.
func (s *servers) sessions(t *testing.T) (n int) {
	t.Helper()
	if err := s.admin.QueryRow(t.Context(), `select sum(sessions) from pg_stat_database`).Scan(
		&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually fails unless ok becomes true in time. It polls, because ok depends on other processes.
// It asks ok once more after the limit: the machine may have stood still since the last time.
func eventually(t testing.TB, limit time.Duration, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		late := time.Now().After(deadline)
		yes, state := ok()
		if yes {
			return
		}
		if late {
			t.Fatalf("after %v: %s", limit, state)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// nothingLeft fails unless permits, waiters and backends are gone after the end. No session is left
// that would remove what one has forgotten, so the limit is only for a slow machine.
func (s *servers) nothingLeft(t *testing.T, semaphore string) {
	t.Helper()
	eventually(t, time.Minute, func() (bool, string) {
		permits := s.redisClient.ZCard(t.Context(), "passbuddy-"+semaphore).Val()
		waiters := s.redisClient.ZCard(t.Context(), "{passbuddy-"+semaphore+"}:queue").Val()
		n := s.backendCount(t)
		return permits == 0 && waiters == 0 && n == 0,
			fmt.Sprintf("%d permits, %d waiters, %d backends left", permits, waiters, n)
	})
}

func (s *servers) connectAdmin(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, s.postgres.AdminURL())
}
