//go:build unix

package integration

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

const (
	patience = time.Minute
	// Fencing takes milliseconds; after 10 s permits become free even if no session has ended a
	// backend.
	prompt = 8 * time.Second
)

// One process of a fleet at its cap is stopped for longer than its leases. With Fence the others
// have Postgres end its backends before they use its permits. Without Fence they cannot, and the
// run shows that the fleet then exceeds the cap.
func TestFrozenProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: leases must expire")
	}
	const (
		processes = 4
		capacity  = 12
		ttl       = 1500 * time.Millisecond // of the process that is stopped
		frozen    = ttl + time.Second
	)
	s := startServers(t, 100)
	type frozenRun struct {
		integration string
		fence       bool
		longest     time.Duration // of the queries
	}
	for _, run := range subset.Of(t, 2, []frozenRun{
		{"pgxpool", true, 20 * time.Millisecond},
		{"stdlib", true, 20 * time.Millisecond},
		// The session that ends the backends must wait for a connection.
		{"pgxpool", true, time.Second},
		{"pgxpool", false, 20 * time.Millisecond},
	}) {
		t.Run(fmt.Sprintf("%s/fence %v/%v", run.integration, run.fence, run.longest),
			func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				seen, c := s.watch(ctx), s.census(t)
				j := job{
					Redis: s.redis.URL(), Postgres: s.postgres.URL(), Semaphore: t.Name(),
					// No lease of the others is lost, even if the machine stands still for seconds.
					Capacity: capacity, TTL: time.Minute,
					Integration: run.integration, Fence: run.fence, Goroutines: 10,
					Load:     time.Hour,
					MaxQuery: run.longest,
				}
				var fleet []*worker
				for range processes - 1 {
					fleet = append(fleet, start(t, j))
				}
				asSleeper := j
				asSleeper.Fault, asSleeper.Postgres = "freeze", withName(t, j.Postgres, "sleeper")
				asSleeper.TTL = ttl
				sleeper := start(t, asSleeper)
				c.await(t, patience, "sleeper", capacity, capacity/processes)
				if run.fence {
					s.recorded(t, capacity)
				}

				signal(t, sleeper, syscall.SIGSTOP)
				began := time.Now()
				if run.fence {
					c.await(t, ttl+prompt, "sleeper", capacity, 0)
					t.Logf("in use again %v after the freeze, %v after a lease", time.Since(began),
						time.Since(began)-ttl)
				} else {
					eventually(t, patience, func() (bool, string) {
						n, _ := c.of(t, "sleeper", time.Time{})
						return n > capacity, fmt.Sprintf(
							"%d backends without Fence: this run proves nothing", n)
					})
				}
				time.Sleep(time.Until(began.Add(frozen)))
				if _, asleep := c.of(t, "sleeper", time.Time{}); run.fence != (asleep == 0) {
					t.Errorf("the stopped process has %d backends", asleep)
				}
				woke := time.Now()
				signal(t, sleeper, syscall.SIGCONT)
				eventually(t, patience, func() (bool, string) {
					_, n := c.of(t, "sleeper", woke)
					return n > 0, fmt.Sprintf("the sleeper is awake, and has %d new backends", n)
				})

				fleet = append(fleet, sleeper)
				for _, w := range fleet {
					w.tell(t, end)
				}
				for i, w := range fleet {
					o, ok := <-w.out
					if !ok {
						t.Fatalf("process %d reported no outcome", i)
					}
					if o.Failed > 0 || o.Ops == 0 {
						t.Errorf("process %d: %d operations, %d failed: %q", i, o.Ops, o.Failed,
							o.Errors)
					}
				}
				cancel()
				peak, mean := seen.peak(t)
				t.Logf("backends: peak %d, mean %.1f", peak, mean)
				if run.fence && peak > capacity {
					t.Errorf("%d backends, capacity %d", peak, capacity)
				}
				s.nothingLeft(t, t.Name())
			})
	}
}

// All holders but one are stopped at once, and with them most of the capacity.
func TestMostAreFrozen(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: leases must expire")
	}
	const capacity, ttl = 8, time.Second
	s := startServers(t, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen, c := s.watch(ctx), s.census(t)
	j := job{
		Redis: s.redis.URL(), Postgres: s.postgres.URL(), Semaphore: t.Name(), Capacity: capacity,
		TTL:         time.Minute,
		Integration: "stdlib", Fence: true, Goroutines: 10, Load: time.Hour,
		MaxQuery: 20 * time.Millisecond,
	}
	awake := start(t, j)
	j.Fault, j.Postgres, j.TTL = "freeze", withName(t, j.Postgres, "sleeper"), ttl
	var sleepers []*worker
	for range 3 {
		sleepers = append(sleepers, start(t, j))
	}
	c.await(t, patience, "sleeper", capacity, capacity*3/4)
	s.recorded(t, capacity)
	for _, w := range sleepers {
		signal(t, w, syscall.SIGSTOP)
	}
	began := time.Now()
	c.await(t, ttl+prompt, "sleeper", capacity, 0)
	t.Logf("in use again %v after the freeze", time.Since(began))
	for _, w := range sleepers {
		signal(t, w, syscall.SIGCONT)
	}
	time.Sleep(ttl / 2) // time for some operations of the processes that just woke
	fleet := append(sleepers, awake)
	allServed(t, fleet, 0)
	for _, w := range fleet {
		w.tell(t, end)
	}
	for i, w := range fleet {
		if o, ok := <-w.out; !ok || o.Failed > 0 || o.Ops == 0 {
			t.Errorf("process %d: reported %v, %d operations, %d failed: %q", i, ok, o.Ops,
				o.Failed, o.Errors)
		}
	}
	cancel()
	if peak, _ := seen.peak(t); peak > capacity {
		t.Errorf("%d backends, capacity %d", peak, capacity)
	}
	s.nothingLeft(t, t.Name())
}

// A process is killed: its backends end by themselves, and the others notice at once.
func TestKilledProcessIsNotWaitedFor(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: leases must expire")
	}
	const ttl = time.Second
	s := startServers(t, 100)
	j := job{
		Redis: s.redis.URL(), Postgres: s.postgres.URL(), Semaphore: t.Name(), Capacity: 8,
		TTL:         time.Minute,
		Integration: "pgxpool", Fence: true, Goroutines: 10, Load: time.Hour,
		MaxQuery: 20 * time.Millisecond,
	}
	c := s.census(t)
	live := start(t, j)
	j.Postgres, j.TTL = withName(t, j.Postgres, "victim"), ttl
	victim := start(t, j)
	c.await(t, patience, "victim", 8, 4)
	signal(t, victim, syscall.SIGKILL)
	began := time.Now()
	c.await(t, ttl+prompt, "victim", 8, 0)
	t.Logf("in use again %v after the end", time.Since(began))
	live.tell(t, end)
	live.outcome(t)
	s.nothingLeft(t, t.Name())
}

func signal(t *testing.T, w *worker, sig syscall.Signal) {
	t.Helper()
	if err := w.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// withName returns dsn with an application_name.
func withName(t *testing.T, dsn, name string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", name)
	u.RawQuery = q.Encode()
	return u.String()
}

// recorded waits until all backends are recorded. A process that stops in the middle of a connect
// has no record yet.
func (s *servers) recorded(t *testing.T, n int64) {
	t.Helper()
	eventually(t, patience, func() (bool, string) {
		has := int64(0)
		for _, record := range s.redisClient.HVals(t.Context(),
			"{passbuddy-"+t.Name()+"}:backends").Val() {
			if !strings.HasPrefix(record, "0 ") { // otherwise the connection is still opening
				has++
			}
		}
		return has == n, fmt.Sprintf("%d backends recorded", has)
	})
}

// census counts backends beside the witness, over a connection of its own.
type census struct{ *pgx.Conn }

func (s *servers) census(t *testing.T) census {
	t.Helper()
	c, err := s.connectAdmin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return census{c}
}

// of returns how many backends the fleet has, and how many of them have that application_name and
// began after that time.
func (c census) of(t *testing.T, name string, after time.Time) (all, its int) {
	t.Helper()
	if err := c.QueryRow(t.Context(), `select count(*),
			count(*) filter (where application_name = $1 and backend_start > $2)
		from pg_stat_activity where usename = $3 and backend_type = 'client backend'`,
		name, after, throwaway.Role).Scan(&all, &its); err != nil {
		t.Fatal(err)
	}
	return all, its
}

// await waits until the fleet has `all` backends, `its` of them with that application_name.
func (c census) await(t *testing.T, limit time.Duration, name string, all, its int) {
	t.Helper()
	eventually(t, limit, func() (bool, string) {
		hasAll, has := c.of(t, name, time.Time{})
		return hasAll == all && has == its,
			fmt.Sprintf("%d backends, %d of them of %s; want %d and %d", hasAll, has, name, all,
				its)
	})
}
