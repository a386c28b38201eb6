package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

// crowding is a fleet of seven modest processes of two goroutines each, with and without a greedy
// one of 200.
type crowding struct {
	capacity int
	pause    time.Duration // of the modest processes' goroutines between two queries
}

const modest = 7

// A greedy process that joined first takes nothing from modest ones.
func TestGreedyProcess(t *testing.T) {
	subset.Sometimes(t, 2)
	s := startServers(t, 100)
	// Once with less capacity than they all want. Once with enough capacity, but connections that
	// are idle in between.
	for _, c := range subset.Of(t, 1, []crowding{{capacity: 8},
		{capacity: 20, pause: 10 * time.Millisecond}}) {
		t.Run(fmt.Sprintf("cap=%d,pause=%v", c.capacity, c.pause), func(t *testing.T) {
			worst, greedy := s.crowded(t, "pgxpool", c, 200, *loadFor)
			if worst.fewest == 0 { // a busy machine takes so long to connect
				worst, greedy = s.crowded(t, "pgxpool", c, 200, *loadFor+10*time.Second)
			}
			t.Logf("the worst of %d modest processes: %v", modest, worst)
			t.Logf("the greedy one made %d operations in all", greedy)
			if worst.fewest == 0 {
				t.Error("a modest process made no operation beside the greedy one")
			}
			if worst.gap > 10*time.Second {
				t.Errorf("a modest process made no operation for %v", worst.gap)
			}
			if greedy == 0 {
				t.Error("the greedy process made no operation")
			}
		})
	}
}

// The p99 of the modest processes' waits, without a greedy one and with it.
func BenchmarkGreedyProcess(b *testing.B) {
	s := startServers(b, 100)
	for _, c := range []crowding{{capacity: 20}, {capacity: 8},
		{capacity: 20, pause: 10 * time.Millisecond}} {
		for _, integration := range []string{"pgxpool", "stdlib"} {
			b.Run(fmt.Sprintf("cap=%d,pause=%v/%s", c.capacity, c.pause, integration),
				func(b *testing.B) {
					var without, with []time.Duration
					var ratio []float64
					for range b.N {
						for range 3 { // side by side
							alone, _ := s.crowded(b, integration, c, 0, *loadFor)
							beside, _ := s.crowded(b, integration, c, 200, *loadFor)
							without, with = append(without, alone.p99), append(with, beside.p99)
							ratio = append(ratio, float64(beside.p99)/float64(alone.p99))
						}
					}
					b.ReportMetric(float64(quantile(without, 0.5).Microseconds()), "without-p99-µs")
					b.ReportMetric(float64(quantile(with, 0.5).Microseconds()), "with-p99-µs")
					b.ReportMetric(quantile(ratio, 0.5), "ratio")
					b.ReportMetric(0, "ns/op")
				})
		}
	}
}

// modestFigures holds the worst figures of any modest process.
type modestFigures struct {
	p50, p99, gap time.Duration
	fewest        int // operations
}

func (m modestFigures) String() string {
	return fmt.Sprintf("wait p50 %v, p99 %v, longest time without an operation %v, fewest "+
		"operations %d", m.p50, m.p99, m.gap, m.fewest)
}

// crowded runs the modest processes for some time, beside a greedy one of that many goroutines, if
// any. It returns the figures of the modest ones, and the operations of the greedy one.
func (s *servers) crowded(
	t testing.TB, integration string, c crowding, greed int, length time.Duration,
) (worst modestFigures, greedy int) {
	t.Helper()
	j := saturating(integration, t.Name(), c.capacity)
	j.Goroutines, j.Pause = 2, c.pause
	j.MinQuery, j.MaxQuery = 5*time.Millisecond, 5*time.Millisecond
	fleet := make(named)
	const greedyName = "p00"
	if greed > 0 {
		all := j
		all.Goroutines, all.Pause = greed, 0
		s.run(t, fleet, 1, all)
	}
	s.run(t, fleet, modest, j)
	time.Sleep(time.Second) // The shares settle.
	fleet.tell(t, count)
	time.Sleep(length)
	worst.fewest = -1
	for name, o := range fleet.stop(t) {
		if greed > 0 && name == greedyName {
			greedy = o.Ops
			continue
		}
		if ops := sum(o.Windows); worst.fewest < 0 || ops < worst.fewest {
			worst.fewest = ops
		}
		worst.p50, worst.p99, worst.gap = max(worst.p50, o.P50), max(worst.p99, o.P99),
			max(worst.gap, o.Gap)
	}
	return worst, greedy
}
