package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

// The main promise: a fleet of processes never has more backends than its capacity, whatever fails
// in it, and serves every process meanwhile. Postgres has room for more, so the test would see an
// excess.
func TestCap(t *testing.T) {
	const processes, goroutines, capacity = 8, 40, 20
	s := startServers(t, 100)
	faults := []string{"cancel", "hijack", "afterconnect", "terminate", "kill"}
	for _, fault := range append([]string{""}, subset.Of(t, 2, faults)...) {
		integrations := []string{"pgxpool", "stdlib", "pq"}
		if fault == "hijack" || fault == "afterconnect" {
			integrations = integrations[:1] // only pgxpool has these hooks
		}
		for _, integration := range subset.Of(t, 1, integrations) {
			name := integration + "-" + fault
			t.Run(name, func(t *testing.T) {
				j := job{
					Redis: s.redis.URL(), Postgres: s.postgres.URL(), Semaphore: name,
					Capacity: capacity, TTL: 5 * time.Second,
					Integration: integration, Fault: fault, Goroutines: goroutines, Load: *loadFor,
					MaxQuery: 20 * time.Millisecond,
				}
				switch fault {
				case "":
					j.FirstQuery = time.Second // so that the whole cap is certainly in use at once
				case "kill":
					j.TTL = 2 * time.Second
				case "cancel":
					j.MaxQuery = 2 * cancelAfter // half of them
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				before := s.sessions(t)
				seen := s.watch(ctx)
				var fleet []*worker
				for range processes {
					fleet = append(fleet, start(t, j))
				}
				if fault == "terminate" {
					go s.terminateAtRandom(ctx)
				}
				if fault == "kill" {
					// SIGKILL, by process id, after half of the load.
					victim := fleet[0].cmd.Process
					time.AfterFunc(j.Load/2, func() { _ = victim.Kill() })
					fleet = fleet[1:]
				}
				ops, failures, longest := 0, 0, time.Duration(0)
				for i, w := range fleet {
					o, ok := <-w.out
					if !ok {
						t.Fatalf("process %d reported no outcome", i)
					}
					ops += o.Ops
					failures += o.Expected
					longest = max(longest, o.Longest)
					if o.Failed > 0 {
						t.Errorf("process %d: %d operations failed: %q", i, o.Failed, o.Errors)
					}
					if o.Ops == 0 {
						t.Errorf("process %d made no operation: it was starved", i)
					}
				}
				cancel()
				peak, mean := seen.peak(t)
				t.Logf("%d operations, %d failed as they should, longest wait %v, %d connects, "+
					"backends: peak %d, mean %.1f",
					ops, failures, longest, s.sessions(t)-before, peak, mean)
				if peak > capacity {
					t.Errorf("%d backends, capacity %d", peak, capacity)
				}
				// Faults cost connections, and a slow machine is busy opening new ones. Without
				// faults only the cap limits the fleet.
				if fault == "" && peak < capacity {
					t.Errorf("peak of %d backends: the run never reached the cap", peak)
				}
				if (fault == "cancel" || fault == "afterconnect" || fault == "terminate") &&
					failures == 0 {
					t.Error("no operation failed: the fault had no effect")
				}
				if fault == "kill" {
					// The permits of the killed process expire.
					eventually(t, j.TTL, func() (bool, string) {
						n := s.redisClient.ZCount(t.Context(), "passbuddy-"+name,
							fmt.Sprint(time.Now().UnixMilli()), "+inf").Val()
						return n == 0, fmt.Sprintf("%d permits left", n)
					})
					return
				}
				s.nothingLeft(t, name)
			})
		}
	}
}

// terminateAtRandom ends one backend of the fleet every 20 ms.
func (s *servers) terminateAtRandom(ctx context.Context) {
	admin, err := s.connectAdmin(ctx)
	if err != nil {
		return
	}
	defer admin.Close(context.Background())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = admin.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity
				where usename = 'passbuddy' and backend_type = 'client backend'
				order by random() limit 1`)
		}
	}
}
