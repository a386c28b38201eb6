package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// These tests count connects: each connect is a permit that moved. `passbuddy bench` measures
// times.

// moving is the job of a process of n goroutines at capacity 20, with queries of 5 ms.
func moving(integration, name string, n int) job {
	j := saturating(integration, name, 20)
	j.Goroutines, j.MinQuery, j.MaxQuery = n, 5*time.Millisecond, 5*time.Millisecond
	return j
}

// allWork fails for a process that made no operation, or had one that failed.
func allWork(t *testing.T, outcomes map[string]outcome) {
	t.Helper()
	for name, o := range outcomes {
		if o.Failed > 0 {
			t.Errorf("%s: %d operations failed: %q", name, o.Failed, o.Errors)
		}
		if o.Ops == 0 {
			t.Errorf("%s made no operation", name)
		}
	}
}

// A connect takes a second, and the fleet has at least a permit for each process. It opens as many
// connections as it may hold, and hardly more.
func TestSlowConnectsMakeNoStorm(t *testing.T) {
	subset.Sometimes(t, 2)
	s := startServersWith(t, throwaway.PostgresOptions{MaxConnections: 100,
		Settings: map[string]string{"pre_auth_delay": "1"}})
	type fleetOf struct {
		integration string
		processes   int
	}
	for _, c := range subset.Of(t, 1, []fleetOf{{"pgxpool", 15}, {"pgxpool", 20}, {"stdlib", 15},
		{"stdlib", 20}}) {
		t.Run(fmt.Sprintf("%s/%d", c.integration, c.processes), func(t *testing.T) {
			seen := s.ledger(t)
			fleet := make(named)
			began := time.Now()
			s.run(t, fleet, c.processes, moving(c.integration, t.Name(), 4))
			time.Sleep(5 * time.Second)
			connects, full := seen.connects(began), 0
			for full < 18 && time.Since(began) < time.Minute { // a busy machine takes longer
				time.Sleep(100 * time.Millisecond)
				for _, held := range seen.since(time.Now().Add(-time.Second)) {
					full = max(full, held.total())
				}
			}
			outcomes := fleet.stop(t)
			t.Logf("%d connects in 5s, %d of 20 backends after %v", connects, full, time.Since(began))
			// An earlier version made 90 to 120 connects, and never had one of 20 in use.
			if connects > 60 {
				t.Errorf("%d connects for 20 permits", connects)
			}
			if full < 18 {
				t.Errorf("%d of 20 backends", full)
			}
			allWork(t, outcomes)
			if peak := seen.mostAtOnce(); peak > 20 {
				t.Errorf("%d backends", peak)
			}
		})
	}
}

// With pauses between queries, permits stop moving: a process whose connections are busy for a
// moment waits for one of its own.
func TestPausingTrafficComesToRest(t *testing.T) {
	subset.Sometimes(t, 2)
	s := startServers(t, 100)
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			seen := s.ledger(t)
			fleet := make(named)
			j := moving(integration, t.Name(), 4)
			j.MinQuery, j.MaxQuery, j.Pause = 2*time.Millisecond, 2*time.Millisecond,
				50*time.Millisecond
			s.run(t, fleet, 12, j)
			time.Sleep(time.Second)
			// An earlier version made 13 a second and more.
			connects, rest := seen.rests(time.Now(), 3*time.Second, 15)
			t.Logf("%d connects in 3s", connects)
			if !rest {
				t.Errorf("%d connects in 3s of the same traffic", connects)
			}
			allWork(t, fleet.stop(t))
		})
	}
}

// Processes are replaced one by one under load. No operation fails, and each change moves about as
// many permits as the process held.
func TestRollingDeploy(t *testing.T) {
	s := startServers(t, 100)
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			const processes = 5
			seen := s.ledger(t)
			fleet := make(named)
			began := time.Now()
			s.run(t, fleet, processes, moving(integration, t.Name(), 10))
			for i := range processes {
				s.run(t, fleet, 1, moving(integration, t.Name(), 10))
				name := fmt.Sprintf("p%02d", i)
				old := named{name: fleet[name]}
				allWork(t, old.stop(t))
				fleet[name] = nil
			}
			connects := seen.connects(began)
			for i := range processes {
				delete(fleet, fmt.Sprintf("p%02d", i))
			}
			allWork(t, fleet.stop(t))
			t.Logf("%d connects", connects)
			// 20 connects at the start. For each newcomer the others give up 3 or 4 permits, and
			// get the 4 of the process that leaves.
			if most := 20 + processes*16; connects > most {
				t.Errorf("%d connects, want at most %d", connects, most)
			}
			if peak := seen.mostAtOnce(); peak > 20 {
				t.Errorf("%d backends", peak)
			}
		})
	}
}
