package bench

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/backends"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

const ms = time.Millisecond

func TestSumBins(t *testing.T) {
	processes := [][]int64{{1, 2, 3, 4, 5}, {10, 20, 30, 40, 50}, {100}} // the last one left early
	if got, want := sumBins(processes, 50*ms, 100*ms), []int64{133, 77}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v: whole bins of 100 ms only", got, want)
	}
	if got, want := sumBins(processes, 10*ms, 10*ms), []int64{111, 22, 33, 44, 55}; !slices.Equal(
		got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := sumBins(nil, 10*ms, 10*ms); len(got) != 0 {
		t.Errorf("%v of nothing", got)
	}
}

func TestLongestBelow(t *testing.T) {
	for _, c := range []struct {
		bins []int64
		want time.Duration
	}{
		{nil, 0},
		{[]int64{80, 90, 100}, 0}, // the bound itself is not below it
		{[]int64{79, 100, 79, 0, 100, 79}, 200 * ms},
		{[]int64{100, 0, 0, 0}, 300 * ms},
	} {
		if got := longestBelow(c.bins, 80, 100*ms); got != c.want {
			t.Errorf("%v: %v, want %v", c.bins, got, c.want)
		}
	}
}

func TestTimeToSteady(t *testing.T) {
	for _, c := range []struct {
		bins []int64
		want time.Duration
	}{
		{[]int64{90, 90, 90}, 20 * ms},          // at once: the first window of two
		{[]int64{0, 0, 100, 80, 0, 0}, 40 * ms}, // 180 of 200 is 0.9
		{[]int64{0, 0, 100, 79, 0, 101}, 60 * ms},
	} {
		if got := timeToSteady(c.bins, 100, 0.9, 10*ms, 20*ms); got != c.want {
			t.Errorf("%v: %v, want %v", c.bins, got, c.want)
		}
	}
}

func TestChangeFigures(t *testing.T) {
	m := measurement{Values: make(map[string]float64)}
	m.addChange([]int64{90, 110, 100, 50, 79, 81, 20, 100}, 300*ms)
	for name, want := range map[string]float64{steadyOps: 1000, lowestOps: 200, lowestToSteady: 0.2,
		longestLow: 200} {
		if got := m.Values[name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	m.addChange(nil, 300*ms) // a run that was cut short
	if m.Values[lowestOps] != 0 || m.Values[longestLow] != 0 {
		t.Errorf("of nothing: %v", m.Values)
	}
}

func TestColdStartFigures(t *testing.T) {
	fine := make([]int64, 300) // 3 s of 10 ms
	for i := range fine {
		switch {
		case i >= 50:
			fine[i] = 10
		case i >= 20:
			fine[i] = 5
		}
	}
	m := measurement{Values: make(map[string]float64)}
	m.addColdStart(fine, 10*ms)
	// A window reaches 0.9 of 100 operations in 100 ms when eight of its ten bins have the full
	// rate.
	for name, want := range map[string]float64{firstSecondOps: 30*5 + 50*10, steadyOps: 1000,
		timeToSteadyMs: 580} {
		if got := m.Values[name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestTimelineOfPermitsOnTheirWay(t *testing.T) {
	open := []backends.Sample{{At: 900 * ms, Open: 99}, {At: 1010 * ms, Open: 10},
		{At: 1020 * ms, Open: 12}, {At: 1150 * ms, Open: 20}, {At: 1310 * ms, Open: 9}}
	held := []heldSample{{1010 * ms, 14}, {1050 * ms, 16}, {1150 * ms, 19}, {1250 * ms, 5},
		{1310 * ms, 9}, {1900 * ms, 7}}
	got := newTimeline([]int64{1, 2, 3, 4}, time.Second, open, held, []time.Duration{100 * ms})
	if want := []float64{11, 20, -1, 9}; !slices.Equal(got.Backends, want) {
		t.Errorf("backends %v, want %v", got.Backends, want)
	}
	if want := []float64{4, 0, -1, 0}; !slices.Equal(got.OnTheirWay, want) {
		t.Errorf("on their way %v, want %v", got.OnTheirWay, want)
	}
	if !slices.Equal(got.Changes, []float64{100}) {
		t.Errorf("changes at %v", got.Changes)
	}
	if got := newTimeline([]int64{1}, 0, open, nil, nil); got.OnTheirWay != nil {
		t.Errorf("without permits, on their way are %v", got.OnTheirWay)
	}
}

func TestTimelinePictures(t *testing.T) {
	r := testReport(t, parse(t, "-tables", "changes,cold"))
	for _, c := range r.Cells {
		if c.Note != "" {
			continue
		}
		c.Rounds[0].Timeline = &timeline{
			Operations: []int64{300, 400, 0, 350}, Backends: []float64{20, 19.5, -1, 18},
			OnTheirWay: []float64{0, 3, -1, 1}, Changes: []float64{100, 200},
		}
		if c.Strategy != perConn.name {
			c.Rounds[0].Timeline.OnTheirWay = nil
		}
	}
	pictures := drawPictures(r)
	var files []string
	for _, p := range pictures {
		files = append(files, p.name)
		text, bars := inspect(t, p.document)
		if bars != 0 {
			t.Errorf("%s has bars of throughput", p.name)
		}
		for _, part := range []string{"PassBuddy", "PgBouncer, transaction", "backends",
			"permits on their way", "operations per second", "cap 20"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s has no text %q", p.name, part)
			}
		}
		// The gap cuts each line in two, and only PassBuddy has permits.
		strategies := 3
		if strings.Contains(p.name, "40x5") || strings.Contains(p.name, "100x2") {
			strategies = 2 // a static split is impossible
		}
		if got, want := bytes.Count(p.document, []byte("<polyline")), 2*strategies+strategies+
			2; got != want {
			t.Errorf("%s has %d lines, want %d", p.name, got, want)
		}
		if got := bytes.Count(p.document, []byte(`class="change"`)); got != 3*2 {
			t.Errorf("%s has %d changes drawn, want 2 in each of 3 panels", p.name, got)
		}
	}
	if got, want := strings.Join(files, " "),
		"timeline-cold-8x40.svg timeline-cold-20x10.svg timeline-cold-40x5.svg "+
			"timeline-cold-100x2.svg "+
			"timeline-rolling-deploy.svg timeline-scale-out.svg "+
			"timeline-scale-in.svg"; got != want {
		t.Errorf("pictures %s, want %s", got, want)
	}
	document := markdown("BENCHMARKS.md", "pictures", pictures, r)
	for _, file := range files {
		if strings.Count(document, "](pictures/"+file+")") != 1 {
			t.Errorf("%s is not in the document, or more than once", file)
		}
	}
	if got := drawTimelines(testReport(t, parse(t, "-tables", "changes"))); len(got) != 0 {
		t.Errorf("%d pictures without a timeline", len(got))
	}
}

func TestTimelinesUseTheSpansBins(t *testing.T) {
	sp := spec{scenario: scenario{table: coldTable}}
	o := Options{duration: 200 * time.Millisecond}
	m := measurement{Values: make(map[string]float64)}
	m.addTimeline(sp, o, fleet.Span{}, reportsOf(t, 1, time.Now()), nil, nil)
	if m.Timeline == nil || !slices.Equal(m.Timeline.Operations, []int64{6, 14}) {
		t.Errorf("bins of 50 ms: %+v", m.Timeline)
	}
	m.addTimeline(sp, o, fleet.Span{BinWidth: 100 * time.Millisecond}, reportsOf(t, 1, time.Now()),
		nil, nil)
	if !slices.Equal(m.Timeline.Operations, []int64{2, 4, 6, 8}) {
		t.Errorf("bins of 100 ms: %+v", m.Timeline)
	}
	m = measurement{Values: make(map[string]float64)}
	m.addTimeline(spec{}, o, fleet.Span{}, reportsOf(t, 1, time.Now()), nil, nil)
	if m.Timeline != nil || len(m.Values) != 0 {
		t.Errorf("a saturated cell has a timeline: %+v", m)
	}
}
