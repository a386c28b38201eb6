//go:build unix

package integration

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

var kills = flag.Int("kills", 1,
	"how many processes are killed with each integration, one after the other")

// A process of a fleet at its cap is killed. The others see its backends gone and use its permits,
// long before its leases end.
func TestKilledProcessCostsNoLease(t *testing.T) {
	const (
		processes = 4
		capacity  = 12
		ttl       = 30 * time.Second
	)
	s := startServers(t, 100)
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			seen, c := s.watch(ctx), s.census(t)
			j := job{
				Redis: s.redis.URL(), Postgres: s.postgres.URL(), Semaphore: t.Name(),
				Capacity: capacity, TTL: ttl,
				Integration: integration, Fence: true, Goroutines: 10, Load: time.Hour,
				MaxQuery: 20 * time.Millisecond,
			}
			var fleet []*worker
			for range processes - 1 {
				fleet = append(fleet, start(t, j))
			}
			j.Postgres = withName(t, j.Postgres, "victim")
			for range *kills {
				victim := start(t, j)
				c.await(t, patience, "victim", capacity, capacity/processes)
				s.recorded(t, capacity)
				signal(t, victim, syscall.SIGKILL)
				killed := time.Now()
				var ended time.Time
				eventually(t, prompt+patience, func() (bool, string) {
					all, its := c.of(t, "victim", time.Time{})
					if its == 0 && ended.IsZero() {
						ended = time.Now()
					}
					return all == capacity && its == 0,
						fmt.Sprintf("%d backends, %d of them the victim's", all, its)
				})
				took := time.Since(ended)
				t.Logf("its backends had ended %v after the kill, and its permits were in use "+
					"again %v later", ended.Sub(killed), took)
				if took > ttl/3 {
					t.Errorf("its permits were out of use for %v, as long as a lease", took)
				}
			}
			s.endsWell(t, fleet, cancel, seen, capacity)
		})
	}
}

// Programs end without Close, one after the other, and more of them than there are permits. The
// survivor, which hardly uses its one connection, sees their backends gone. It does not give that
// connection up first.
func TestProgramsThatEndWithoutClose(t *testing.T) {
	const ttl = 30 * time.Second
	programs := subset.Length(5, 8)
	s := startServers(t, 100)
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			seen := s.watch(ctx)
			j := job{
				Redis: s.redis.URL(), Postgres: s.postgres.URL(), Semaphore: t.Name(), Capacity: 2,
				TTL:         ttl,
				Integration: integration, Fence: true, Goroutines: 1, Pause: time.Hour,
				Load: time.Hour,
			}
			start(t, j)
			s.recorded(t, 1)
			j.Fault = "exit"
			began := time.Now()
			for i := range programs {
				p := start(t, j)
				for range p.greet {
				}
				if err := <-p.err; err != nil {
					t.Errorf("program %d: %v", i, err)
				}
				p.err <- nil // wakes the wait at the end of the test
			}
			took := time.Since(began)
			t.Logf("%d programs took %v", programs, took)
			if took > ttl*2/3 {
				t.Errorf("%d programs took %v: one of them waited for a lease", programs, took)
			}
			cancel()
			if peak, _ := seen.peak(t); peak > 2 {
				t.Errorf("%d backends, capacity 2", peak)
			}
		})
	}
}

// A process loses its subscription for good, while others wait for its permits. It keeps the
// permits, and its connections.
func TestLostSubscriptionCostsNothing(t *testing.T) {
	const (
		capacity = 6
		ttl      = 30 * time.Second
		user     = "deaf"
	)
	s := startServers(t, 100)
	admin := func(args ...any) {
		t.Helper()
		if err := s.redisClient.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	admin("ACL", "SETUSER", user, "on", ">"+userSecret, "~*", "+@all")
	// Redis 6.0 has no rules for channels
	_ = s.redisClient.Do(t.Context(), "ACL", "SETUSER", user, "allchannels").Err()
	u, err := url.Parse(s.redis.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, userSecret)
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			seen, c := s.watch(ctx), s.census(t)
			j := job{
				Redis: s.redis.URL(), Postgres: s.postgres.URL(), Semaphore: t.Name(),
				Capacity: capacity, TTL: ttl,
				Integration: integration, Fence: true, Goroutines: 10, Load: time.Hour,
				MaxQuery: 20 * time.Millisecond,
			}
			other := start(t, j)
			j.Redis, j.Postgres = u.String(), withName(t, j.Postgres, user)
			deaf := start(t, j)
			c.await(t, patience, user, capacity, capacity/2)
			s.recorded(t, capacity)
			s.settled(t)
			before := s.pidsOf(t, user)

			admin("ACL", "SETUSER", user, "-subscribe", "-ssubscribe")
			admin("CLIENT", "KILL", "TYPE", "pubsub", "USER", user)
			s.looks(t, 5)
			if after := s.pidsOf(t, user); after != before {
				t.Errorf("the process has the backends %s, want those that it had: %s", after,
					before)
			}
			if n := s.redisClient.HLen(t.Context(),
				"{passbuddy-"+t.Name()+"}:backends").Val(); n != capacity {
				t.Errorf("%d backends are recorded, want %d", n, capacity)
			}
			s.endsWell(t, []*worker{other, deaf}, cancel, seen, capacity)
			admin("ACL", "SETUSER", user, "+@all")
		})
	}
}

// endsWell ends a fleet, and then the witness: every process made operations, the cap held, and
// nothing is left in Redis.
func (s *servers) endsWell(
	t *testing.T, fleet []*worker, stop context.CancelFunc, saw *witness, capacity int,
) {
	t.Helper()
	allServed(t, fleet, 0)
	for _, w := range fleet {
		w.tell(t, end)
	}
	for _, w := range fleet {
		w.outcome(t)
	}
	stop()
	if peak, _ := saw.peak(t); peak > capacity {
		t.Errorf("%d backends, capacity %d", peak, capacity)
	}
	s.nothingLeft(t, t.Name())
}

// settled waits until no permit is on its way from one process to another: neither recalled, nor
// granted to a pool that connects for it.
func (s *servers) settled(t *testing.T) {
	t.Helper()
	eventually(t, patience, func() (bool, string) {
		c, key := s.redisClient, "{passbuddy-"+t.Name()+"}:"
		debts := c.HLen(t.Context(), key+"debts").Val()
		promises := c.ZCard(t.Context(), key+"promises").Val()
		moves := c.ZCard(t.Context(), key+"moves").Val()
		return debts+promises+moves == 0, fmt.Sprintf(
			"%d pools owe permits, %d are promised, %d pools connect; want none", debts, promises, moves)
	})
}

// looks waits until the one session that is still subscribed has been asked that often to check for
// backends.
func (s *servers) looks(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pattern := "{passbuddy-" + t.Name() + "}:push:*"
	list, subscribe := s.redisClient.PubSubShardChannels, s.redisClient.SSubscribe
	if list(ctx, pattern).Err() != nil { // before Redis 7
		list, subscribe = s.redisClient.PubSubChannels, s.redisClient.Subscribe
	}
	var channels []string
	eventually(t, patience, func() (bool, string) {
		channels = list(ctx, pattern).Val()
		return len(channels) == 1, fmt.Sprintf("subscribed to: %q", channels)
	})
	sub := subscribe(ctx, channels[0])
	defer sub.Close()
	for n > 0 {
		m, err := sub.ReceiveMessage(ctx)
		if err != nil {
			t.Fatalf("%d checks for backends are missing: %v", n, err)
		}
		if strings.HasPrefix(m.Payload, "s ") {
			n--
		}
	}
}

// pidsOf lists the backends that have that application_name.
func (s *servers) pidsOf(t *testing.T, name string) (pids string) {
	t.Helper()
	c, err := s.connectAdmin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if err := c.QueryRow(t.Context(), `select coalesce(string_agg(pid::text, ' ' order by pid), '')
		from pg_stat_activity where application_name = $1`, name).Scan(&pids); err != nil {
		t.Fatal(err)
	}
	return pids
}
