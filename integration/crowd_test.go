package integration

import (
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

// More processes than permits: they take turns, and none is left out.
func TestMoreProcessesThanPermits(t *testing.T) {
	subset.Sometimes(t, 2)
	s := startServers(t, 100)
	processes := subset.Length(30, 40)
	length := *loadFor + subset.Length(2*time.Second, 4*time.Second)
	f := s.crowd(t, "pgxpool", processes, length)
	if f.least == 0 { // a busy machine takes so long to connect
		f = s.crowd(t, "pgxpool", processes, length+10*time.Second)
	}
	t.Logf("%d processes, 20 permits: %.0f operations/s, fewest of any process in any %v: %d, "+
		"longest without one: %v, connects %.0f/s",
		processes, f.rate, window, f.fewest, f.gap, f.connects)
	if f.least == 0 {
		t.Error("a process made no operation")
	}
	if f.gap > 10*time.Second {
		t.Errorf("a process made no operation for %v", f.gap)
	}
}

func BenchmarkMoreProcessesThanPermits(b *testing.B) {
	s := startServers(b, 100)
	for _, integration := range []string{"pgxpool", "stdlib"} {
		b.Run(integration, func(b *testing.B) {
			var ratio, rate, connects []float64
			fewest, gap := -1, time.Duration(0)
			length := max(*loadFor, 6*time.Second)
			for range b.N {
				for range 3 { // side by side
					twenty, forty := s.crowd(b, integration, 20, length),
						s.crowd(b, integration, 40, length)
					ratio, rate, connects = append(ratio, forty.rate/twenty.rate),
						append(rate, forty.rate), append(connects, forty.connects)
					gap = max(gap, forty.gap)
					if fewest < 0 || forty.fewest < fewest {
						fewest = forty.fewest
					}
				}
			}
			b.ReportMetric(quantile(ratio, 0.5), "ratio-to-20")
			b.ReportMetric(quantile(rate, 0.5), "ops/s")
			b.ReportMetric(quantile(connects, 0.5), "connects/s")
			b.ReportMetric(float64(fewest), "fewest-in-2s")
			b.ReportMetric(float64(gap.Milliseconds()), "longest-gap-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// window is the time in which every process should make progress.
const window = 2 * time.Second

// crowdFigures are the figures of a fleet that shares 20 permits.
type crowdFigures struct {
	rate     float64       // operations a second, of all processes
	connects float64       // a second, of all processes
	fewest   int           // fewest operations of any process in any window
	least    int           // fewest operations of any process
	gap      time.Duration // the longest time of any process without an operation
}

// crowd saturates a number of processes on 20 permits.
func (s *servers) crowd(
	t testing.TB, integration string, processes int, length time.Duration,
) crowdFigures {
	t.Helper()
	const capacity = 20
	seen := s.ledger(t)
	fleet := make(named)
	j := saturating(integration, t.Name(), capacity)
	j.Goroutines = 4
	s.run(t, fleet, processes, j)
	time.Sleep(time.Second) // The shares settle.
	began := time.Now()
	fleet.tell(t, count)
	time.Sleep(length)
	connects := seen.connects(began)
	f := crowdFigures{fewest: -1}
	ops := 0
	for _, o := range fleet.stop(t) {
		made := sum(o.Windows)
		if f.fewest < 0 {
			f.least, f.fewest = made, o.fewest(window)
		}
		f.least, f.fewest, f.gap = min(f.least, made), min(f.fewest, o.fewest(window)),
			max(f.gap, o.Gap)
		ops += made
	}
	f.rate = float64(ops) / length.Seconds()
	f.connects = float64(connects) / length.Seconds()
	if peak := seen.mostAtOnce(); peak > capacity {
		t.Errorf("%d backends, capacity %d", peak, capacity)
	}
	return f
}
