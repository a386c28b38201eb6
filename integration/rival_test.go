package integration

import (
	"strings"
	"testing"
	"time"
)

// The cost of cancelled queries, beside pools without PassBuddy that split the cap between them.
// There too a cancelled query ends its connection, so opening connections bounds both. One round is
// a whole run of a fleet, as long as -load.
func BenchmarkCancelledQueries(b *testing.B) {
	const processes, goroutines, capacity = 8, 40, 20
	s := startServers(b, 100)
	for _, integration := range []string{"bare-pgxpool", "pgxpool", "bare-stdlib", "stdlib",
		"bare-pq", "pq"} {
		b.Run(integration, func(b *testing.B) {
			j := job{
				Redis: s.redis.URL(), Postgres: s.postgres.URL(), Semaphore: integration,
				Capacity: capacity, TTL: 5 * time.Second,
				Integration: integration, Fault: "cancel", Goroutines: goroutines, Load: *loadFor,
				MaxQuery: 2 * cancelAfter,
			}
			if strings.HasPrefix(integration, "bare-") {
				j.Share = capacity / processes
			}
			queries := 0
			for range b.N {
				var fleet []*worker
				for range processes {
					fleet = append(fleet, start(b, j))
				}
				for _, w := range fleet {
					o, ok := <-w.out
					if !ok || o.Failed > 0 {
						b.Fatalf("a process failed: %q", o.Errors)
					}
					queries += o.Ops + o.Expected
				}
			}
			b.ReportMetric(float64(queries)/float64(b.N)/loadFor.Seconds(), "queries/s")
		})
	}
}
