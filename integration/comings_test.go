package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

// A newcomer among saturated holders is served. When a process leaves in good order, the others use
// its permits at once; when it is killed, they use them when its leases end.
func TestComingsAndGoings(t *testing.T) {
	subset.Sometimes(t, 2)
	const ttl = 2 * time.Second
	s := startServers(t, 100)
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			c := s.comeAndGo(t, integration, ttl, subset.Length(1, 2))
			t.Logf("a newcomer's first connection after %v", c.first)
			t.Logf("the others had its share after it left in %v", c.left)
			t.Logf("... after it was killed in %v, TTL %v", c.killed, ttl)
			// Not figures, but bounds that an overloaded machine can keep.
			const slack = 10 * time.Second
			for _, first := range c.first {
				if first > slack {
					t.Errorf("a newcomer's first connection came after %v", first)
				}
			}
			for _, left := range c.left {
				if left > slack {
					t.Errorf("the share of a process that left was free after %v", left)
				}
			}
			if c.killed > ttl+slack {
				t.Errorf("the share of a process that was killed was free after %v, TTL %v",
					c.killed, ttl)
			}
		})
	}
}

func BenchmarkComingsAndGoings(b *testing.B) {
	const ttl = 5 * time.Second
	s := startServers(b, 100)
	for _, integration := range []string{"pgxpool", "stdlib"} {
		b.Run(integration, func(b *testing.B) {
			var first, left []time.Duration
			var killed time.Duration
			for range b.N {
				c := s.comeAndGo(b, integration, ttl, 20)
				first, left, killed = append(first, c.first...), append(left, c.left...),
					max(killed, c.killed)
			}
			ms := func(took []time.Duration, q float64, unit string) {
				b.ReportMetric(float64(quantile(took, q).Microseconds())/1000, unit)
			}
			ms(first, 0.5, "first-p50-ms")
			ms(first, 1, "first-max-ms")
			ms(left, 0.5, "left-p50-ms")
			ms(left, 1, "left-max-ms")
			b.ReportMetric(killed.Seconds()/ttl.Seconds(), "killed-max-TTLs")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// comings tells how long the changes in a fleet took.
type comings struct {
	first  []time.Duration // from joining to the first connection
	left   []time.Duration // from the end of a session until the others have the whole capacity
	killed time.Duration   // the same from a kill
}

// comeAndGo saturates three processes that stay. In each round a fourth one joins and leaves.
// comeAndGo kills the last newcomer, whose leases are as long as ttl.
func (s *servers) comeAndGo(
	t testing.TB, integration string, ttl time.Duration, rounds int,
) comings {
	t.Helper()
	const stay, capacity = 3, 20
	seen := s.ledger(t)
	fleet := make(named)
	j := saturating(integration, t.Name(), capacity)
	j.TTL = time.Hour // No permit is freed because a lease ended, but for the kill.
	began := time.Now()
	s.run(t, fleet, stay, j)
	evenAmong := func(processes int) func(shares) bool {
		return func(held shares) bool { return held.even(capacity, processes) }
	}
	seen.await(t, began, evenAmong(stay))

	var c comings
	for round := range rounds + 1 {
		newcomer := make(named)
		for name, w := range fleet {
			newcomer[name] = w // so that its name is another one
		}
		if round == rounds {
			j.TTL = ttl
		}
		joined := s.run(t, newcomer, 1, j)
		w := newcomer[fmt.Sprintf("p%02d", stay)]
		seen.await(t, joined, evenAmong(stay+1))
		if round == rounds {
			killed := time.Now()
			if err := w.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			c.killed = seen.await(t, killed, evenAmong(stay)).Sub(killed)
			break
		}
		w.tell(t, end)
		o := w.outcome(t)
		c.first = append(c.first, o.First)
		c.left = append(c.left, seen.await(t, o.Left, evenAmong(stay)).Sub(o.Left))
	}
	fleet.stop(t)
	if peak := seen.mostAtOnce(); peak > capacity {
		t.Errorf("%d backends, capacity %d", peak, capacity)
	}
	return c
}
