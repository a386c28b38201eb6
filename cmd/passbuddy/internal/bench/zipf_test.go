package bench

import (
	"math"
	"testing"
	"time"
)

func TestZipf(t *testing.T) {
	for _, c := range []struct {
		n    int
		s    float64
		want []float64
	}{
		{1, 1, []float64{1}},
		{4, 0, []float64{0.25, 0.25, 0.25, 0.25}},
		{3, 1, []float64{6.0 / 11, 3.0 / 11, 2.0 / 11}},
		{2, 2, []float64{0.8, 0.2}},
	} {
		got := zipf(c.n, c.s)
		if len(got) != c.n {
			t.Fatalf("zipf(%d, %v) has %d parts", c.n, c.s, len(got))
		}
		for i := range got {
			if math.Abs(got[i]-c.want[i]) > 1e-12 {
				t.Errorf("zipf(%d, %v) is %v, want %v", c.n, c.s, got, c.want)
				break
			}
		}
	}
}

// Skewed or not, the fleet as a whole is offered the same load.
func TestLoadsOfAnOpenLoop(t *testing.T) {
	for _, skewed := range []bool{false, true} {
		sp := spec{capacity: 20, scenario: scenario{
			workload: sleep20, shape: shape{"8", []group{{8, openPool}}},
			load: load{percent: 60, skewed: skewed},
		}}
		// 20 backends do 1,000 queries of 20 ms a second
		if got := sp.offered(); math.Abs(got-600) > 1e-9 {
			t.Fatalf("%v operations/s are 60 %%, want 600", got)
		}
		loads := sp.loads(time.Second)
		var sum float64
		for _, l := range loads {
			sum += l.Rate
			if l.Ramp != time.Second || l.MaxOutstanding != maxOutstanding || l.Pause != 0 {
				t.Errorf("%+v", l)
			}
		}
		if len(loads) != 8 || math.Abs(sum-600) > 1e-9 {
			t.Errorf("skewed %v: %d processes with %v operations/s in all", skewed, len(loads), sum)
		}
		if ratio := loads[0].Rate / loads[7].Rate; skewed && math.Abs(ratio-8) > 1e-9 || !skewed &&
			ratio != 1 {
			t.Errorf("skewed %v: the first process has %v times the last one's demand", skewed,
				ratio)
		}
	}
}

func TestLoadsOfClosedLoops(t *testing.T) {
	sp := spec{capacity: 20, scenario: scenario{workload: sleep2, shape: mustShape("3x8"),
		load: load{pause: pauseMean}}}
	for _, l := range sp.loads(time.Second) {
		if l.Pause != pauseMean || l.Rate != 0 {
			t.Errorf("%+v", l)
		}
	}
	sp = spec{capacity: 20, scenario: scenario{workload: sleep5, change: scaleOut}}
	if got := sp.loads(0); len(got) != 16 || got[15].Rate != 0 {
		t.Errorf("a fleet that grows to 16 has %d loads: %+v", len(got), got)
	}
}
