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
					// No lease is lost, even if the machine stands still for seconds.
					Capacity: capacity, TTL: time.Minute,
					Integration: integration, Fault: fault, Goroutines: goroutines,
					Load:     time.Hour, // until this test has seen what it must see
					MaxQuery: 20 * time.Millisecond,
				}
				victims := j
				failures := 0 // of operations, that the fault must cause
				switch fault {
				case "":
					j.FirstQuery = time.Second // so that the whole cap is certainly in use at once
				case "kill":
					victims.TTL = 2 * time.Second
				case "cancel":
					j.MaxQuery = 2 * cancelAfter // half of them
				}
				if fault == "cancel" || fault == "afterconnect" || fault == "terminate" {
					failures = 1
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				before := s.sessions(t)
				seen := s.watch(ctx)
				began := time.Now()
				var fleet []*worker
				for range processes - 1 {
					fleet = append(fleet, start(t, j))
				}
				if fault == "kill" { // SIGKILL, by process id, of a process that holds permits
					victim := start(t, victims)
					allServed(t, []*worker{victim}, 0)
					if err := victim.cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				} else {
					fleet = append(fleet, start(t, j))
				}
				if fault == "terminate" {
					go s.terminateAtRandom(ctx)
				}
				allServed(t, fleet, failures)
				// Faults cost connections, and a slow machine is busy opening new ones. Without
				// faults only the cap limits the fleet.
				if fault == "" {
					if last, reached := seen.reaches(capacity, time.Minute); !reached {
						t.Errorf("%d backends after a minute: the run never reached the cap", last)
					}
				}
				time.Sleep(time.Until(began.Add(*loadFor)))
				for _, w := range fleet {
					w.tell(t, end)
				}
				ops, failed, longest := 0, 0, time.Duration(0)
				for i, w := range fleet {
					o, ok := <-w.out
					if !ok {
						t.Fatalf("process %d reported no outcome", i)
					}
					ops += o.Ops
					failed += o.Expected
					longest = max(longest, o.Longest)
					if o.Failed > 0 {
						t.Errorf("process %d: %d operations failed: %q", i, o.Failed, o.Errors)
					}
				}
				cancel()
				peak, mean := seen.peak(t)
				t.Logf("%d operations, %d failed as they should, longest wait %v, %d connects, "+
					"backends: peak %d, mean %.1f",
					ops, failed, longest, s.sessions(t)-before, peak, mean)
				if peak > capacity {
					t.Errorf("%d backends, capacity %d", peak, capacity)
				}
				if fault == "kill" {
					// The permits of the killed process expire.
					eventually(t, victims.TTL, func() (bool, string) {
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
