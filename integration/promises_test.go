package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/subset"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// client is a process of the fleet, as far as Redis and Postgres can tell: a session and a pool of
// its own.
type client struct {
	sem  *semaphore.Semaphore
	exec func(ctx context.Context, text string) error
	end  func()
}

var kinds = []string{"pgxpool", "sql"}

func (s *servers) client(
	t *testing.T, kind string, cfg semaphore.Config, opts passbuddy.Config,
) *client {
	t.Helper()
	sem, err := semaphore.Open(t.Context(), s.redis.URL(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{sem: sem}
	switch kind {
	case "pgxpool":
		pc, err := pgxpool.ParseConfig(s.postgres.URL())
		if err != nil {
			t.Fatal(err)
		}
		pc.MaxConns = 50
		p, err := passpool.NewWithConfig(t.Context(), pc, sem, opts)
		if err != nil {
			t.Fatal(err)
		}
		c.exec = func(ctx context.Context, text string) error {
			_, err := p.Exec(ctx, text)
			return err
		}
		c.end = p.Close
	case "sql":
		db := openDB(t, s.postgres.URL(), sem, opts)
		c.exec = func(ctx context.Context, text string) error {
			_, err := db.ExecContext(ctx, text)
			return err
		}
		c.end = func() { _ = db.Close() }
	}
	var once sync.Once
	end := c.end
	c.end = func() {
		once.Do(func() {
			end()
			if err := sem.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	t.Cleanup(c.end)
	return c
}

// commands returns how many commands Redis has executed, those of scripts included.
func (s *servers) commands(t *testing.T) int {
	t.Helper()
	for line := range strings.Lines(s.redisClient.Info(t.Context(), "stats").Val()) {
		if n, ok := strings.CutPrefix(line, "total_commands_processed:"); ok {
			v, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatal("INFO stats shows no total_commands_processed")
	return 0
}

// A warm checkout sends no command, by the server's own count.
func TestWarmCheckoutSendsNoRedisCommand(t *testing.T) {
	s := startServers(t, 50)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			// With this TTL no heartbeat falls into the test.
			c := s.client(t, kind, semaphore.Config{Name: t.Name(), TTL: time.Hour},
				passbuddy.Config{})
			if err := c.exec(t.Context(), "select 1"); err != nil {
				t.Fatal(err)
			}
			before := s.commands(t)
			checkouts := subset.Length(200, 1000)
			for range checkouts {
				if err := c.exec(t.Context(), "select 1"); err != nil {
					t.Fatal(err)
				}
			}
			// The first INFO is one command itself.
			if n := s.commands(t) - before - 1; n != 0 {
				t.Errorf("%d Redis commands for %d warm checkouts, want none", n, checkouts)
			}
		})
	}
}

// An idle connection in one process serves another process that waits, whichever integration each
// of them uses.
func TestIdleConnectionsAreGivenBack(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startServers(t, 50)
	for _, capacity := range []int{1, 4} {
		for _, from := range subset.Of(t, 1, kinds) {
			for _, to := range kinds {
				t.Run(fmt.Sprintf("%s-%s-%d", from, to, capacity), func(t *testing.T) {
					// A waiter that is not told asks again after half a minute.
					cfg := semaphore.Config{Name: t.Name(), Capacity: capacity,
						TTL: time.Minute, RetryInterval: 30 * time.Second}
					a, b := s.client(t, from, cfg, passbuddy.Config{}),
						s.client(t, to, cfg, passbuddy.Config{})
					// On a busy machine the first query can end before the last one has asked.
					eventually(t, time.Minute, func() (bool, string) {
						var wg sync.WaitGroup
						for range capacity {
							wg.Go(func() {
								if err := a.exec(t.Context(), "select pg_sleep(0.1)"); err != nil {
									t.Error(err)
								}
							})
						}
						wg.Wait()
						n := s.backendCount(t)
						return n == capacity, fmt.Sprintf("%d backends, want all %d in a", n,
							capacity)
					})
					began := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
					defer cancel()
					if err := b.exec(ctx, "select 1"); err != nil {
						t.Fatalf("b's first query: %v", err)
					}
					t.Logf("b's first query after %v", time.Since(began))
					if n := s.backendCount(t); n > capacity {
						t.Errorf("%d backends", n)
					}
					// And in the other direction.
					if err := a.exec(ctx, "select 1"); err != nil {
						t.Fatalf("a's next query: %v", err)
					}
				})
			}
		}
	}
}

// A cap of one: two goroutines of a process, then two processes. No caller waits for ever.
func TestProgressAtCapacityOne(t *testing.T) {
	s := startServers(t, 50)
	for _, kind := range subset.Of(t, 1, kinds) {
		t.Run(kind, func(t *testing.T) {
			cfg := semaphore.Config{Name: t.Name(), Capacity: 1, TTL: time.Minute,
				RetryInterval: 10 * time.Second}
			a, b := s.client(t, kind, cfg, passbuddy.Config{}),
				s.client(t, kind, cfg, passbuddy.Config{})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			seen := s.watch(ctx)
			var wg sync.WaitGroup
			const enough = 100
			ops := make([]int, 4)
			var content sync.WaitGroup // the goroutines that have made enough operations
			content.Add(len(ops))
			go func() { content.Wait(); cancel() }()
			longest := make([]time.Duration, 4)
			for i := range ops {
				c := []*client{a, b}[i/2]
				wg.Go(func() {
					for ctx.Err() == nil {
						began := time.Now()
						if err := c.exec(context.WithoutCancel(ctx), "select 1"); err != nil {
							t.Errorf("goroutine %d: %v", i, err)
							return
						}
						if ops[i]++; ops[i] == enough {
							content.Done()
						}
						longest[i] = max(longest[i], time.Since(began))
					}
				})
			}
			wg.Wait()
			peak, _ := seen.peak(t)
			t.Logf("operations %v, longest %v", ops, longest)
			if peak != 1 {
				t.Errorf("%d backends at the peak", peak)
			}
			for i, n := range ops {
				if n < enough {
					t.Errorf("goroutine %d made only %d operations in a minute", i, n)
				}
			}
		})
	}
}

// A checkout that gives up returns promptly, says why, and leaves no request in the queue.
func TestCancelledCheckout(t *testing.T) {
	s := startServers(t, 50)
	for _, kind := range kinds {
		for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
			t.Run(fmt.Sprintf("%s-%v", kind, scope), func(t *testing.T) {
				// With this TTL no request that is left behind ends by itself.
				cfg := semaphore.Config{Name: t.Name(), Capacity: 1, TTL: time.Hour}
				a, b := s.client(t, kind, cfg, passbuddy.Config{Scope: scope}),
					s.client(t, kind, cfg, passbuddy.Config{Scope: scope})
				holding, release := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					_ = a.exec(holding, "select pg_sleep(600)")
				}()
				eventually(t, time.Minute, func() (bool, string) {
					return s.backendCount(t) == 1, "a has no connection"
				})
				// b knows that the fleet is full once Redis has answered it. On a busy machine that
				// takes longer than its caller waits at first.
				full := func(want error, ctx func(time.Duration) (context.Context,
					context.CancelFunc)) {
					t.Helper()
					patience := 25 * time.Millisecond
					eventually(t, time.Minute, func() (bool, string) {
						patience *= 2
						limited, stop := ctx(patience)
						defer stop()
						err := b.exec(limited, "select 1")
						if !errors.Is(err, want) {
							t.Errorf("error %q does not match %q", err, want)
						}
						return errors.Is(err, semaphore.ErrCapacity), fmt.Sprintf("after %v: %v",
							patience, err)
					})
				}
				reason := errors.New("the caller's reason")
				full(context.Canceled, func(after time.Duration) (context.Context,
					context.CancelFunc) {
					ctx, cancel := context.WithCancelCause(t.Context())
					stop := time.AfterFunc(after, func() { cancel(reason) })
					return ctx, func() { stop.Stop(); cancel(nil) }
				})
				full(context.DeadlineExceeded, func(after time.Duration) (context.Context,
					context.CancelFunc) {
					return context.WithTimeout(t.Context(), after)
				})
				eventually(t, time.Minute, func() (bool, string) {
					return s.redisClient.ZCard(t.Context(),
						"{passbuddy-"+t.Name()+"}:queue").Val() == 0, "b is still in the queue"
				})
				release()
				<-done
				if err := b.exec(t.Context(), "select 1"); err != nil {
					t.Errorf("after the release: %v", err)
				}
			})
		}
	}
}

// PerCheckout caps concurrent use, and leaves idle connections open and uncounted.
func TestPerCheckout(t *testing.T) {
	s := startServers(t, 100)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			const capacity = 3
			// With this TTL no permit that is left behind ends by itself.
			cfg := semaphore.Config{Name: t.Name(), Capacity: capacity, TTL: time.Hour}
			opts := passbuddy.Config{Scope: passbuddy.PerCheckout}
			a, b := s.client(t, kind, cfg, opts), s.client(t, kind, cfg, opts)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			most, began := 0, time.Now()
			var wg sync.WaitGroup
			for i := range 20 {
				c := []*client{a, b}[i%2]
				wg.Go(func() {
					for ctx.Err() == nil {
						if err := c.exec(context.WithoutCancel(ctx),
							"select pg_sleep(0.002)"); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			// For long enough to exceed the capacity, and until it was reached.
			for took := time.Duration(0); took < *loadFor/3 ||
				most < capacity && took < time.Minute; took = time.Since(began) {
				var active int
				if err := s.admin.QueryRow(t.Context(), backends+` and state = 'active'`).Scan(
					&active); err != nil {
					t.Fatal(err)
				}
				most = max(most, active)
			}
			cancel()
			wg.Wait()
			if most != capacity {
				t.Errorf("%d queries ran together, capacity %d", most, capacity)
			}
			eventually(t, time.Minute, func() (bool, string) {
				n := s.redisClient.ZCard(t.Context(), "passbuddy-"+t.Name()).Val()
				return n == 0, fmt.Sprintf("%d permits held while no connection is checked out", n)
			})
			if n := s.backendCount(t); n == 0 {
				t.Error("idle connections were closed")
			}
		})
	}
}

var registered sync.Mutex
var registrations int

// openDB opens a DB as a user does: by driver name.
func openDB(t testing.TB, dsn string, sem *semaphore.Semaphore, opts passbuddy.Config) *sql.DB {
	t.Helper()
	registered.Lock()
	registrations++
	name := fmt.Sprintf("passbuddy-%d", registrations)
	registered.Unlock()
	passbuddy.Register(name, stdlib.GetDefaultDriver(), sem, opts)
	db, err := sql.Open(name, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxIdleConns(50)
	return db
}
