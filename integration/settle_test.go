package integration

import (
	"math"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

// handful is how many connects a fleet may make, all together, while its shares are even and no
// process joins or leaves.
const handful = 5

// Saturated processes settle at even shares, and then no permit moves.
func TestSharesSettle(t *testing.T) {
	s := startServers(t, 100)
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			took, connects := s.settle(t, integration, *loadFor, handful)
			t.Logf("even %v after the last one joined, then %d connects in %v", took, connects,
				*loadFor)
			if connects > handful {
				t.Errorf("%d connects in %v, long after the shares were even, want at most %d",
					connects, *loadFor, handful)
			}
		})
	}
}

func BenchmarkSharesSettle(b *testing.B) {
	s := startServers(b, 100)
	for _, integration := range []string{"pgxpool", "stdlib"} {
		b.Run(integration, func(b *testing.B) {
			var took []time.Duration
			connects := 0
			quiet := max(*loadFor, 10*time.Second)
			for range b.N {
				settled, n := s.settle(b, integration, quiet, math.MaxInt)
				took = append(took, settled)
				connects = max(connects, n)
			}
			b.ReportMetric(float64(quantile(took, 0.5).Milliseconds()), "settle-ms")
			b.ReportMetric(float64(connects), "connects/quiet")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// settle saturates four processes, of which the last one joins late. It returns the time from then
// until 20 permits are shared 5, 5, 5 and 5. It also returns the connects of the whole fleet in the
// quiet time after that, or in a later one if there were more than most.
func (s *servers) settle(
	t testing.TB, integration string, quiet time.Duration, most int,
) (took time.Duration, connects int) {
	t.Helper()
	const capacity = 20
	seen := s.ledger(t)
	fleet := make(named)
	j := saturating(integration, t.Name(), capacity)
	began := time.Now()
	s.run(t, fleet, 3, j)
	seen.await(t, began, func(held shares) bool { return held.even(capacity, 3) })
	joined := s.run(t, fleet, 1, j)
	even := seen.await(t, joined, func(held shares) bool { return held.even(capacity, 4) })
	connects, _ = seen.rests(even, quiet, most)
	fleet.stop(t)
	if peak := seen.mostAtOnce(); peak > capacity {
		t.Errorf("%d backends, capacity %d", peak, capacity)
	}
	return even.Sub(joined), connects
}
