package bench

import (
	"maps"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/backends"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// addCounters corrects for reads that are late by different times, and ignores reads that are too
// close to each other.
func TestCountersAreOfTheTimeBetweenLooks(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	at := func(seconds float64) time.Time {
		return start.Add(time.Duration(seconds * float64(time.Second)))
	}
	before := counters{
		cpu: cpuSeconds{known: true, fleet: 1, postgres: 2}, cpuAt: at(0),
		redis: redisCounters{commands: 100, scripts: 10, reads: 50}, redisAt: at(1),
		sessions: 7, sessionsAt: at(3),
	}
	after := counters{
		// twice as long as measured
		cpu:   cpuSeconds{known: true, fleet: 3, postgres: 6, redis: 0.5, pgBouncer: 1.5},
		cpuAt: at(8),
		redis: redisCounters{commands: 1301, scripts: 610, reads: 651}, redisAt: at(4),
		sessions: 27, sessionsAt: at(7),
	}
	m := measurement{Values: map[string]float64{opsPerSecond: 100}}
	m.addCounters(4*time.Second, before, after)
	want := map[string]float64{
		opsPerSecond: 100, connectsPerSecond: 5, redisCommandsPerOp: 4, redisScriptsPerOp: 2,
		redisReadsPerOp: 2,
		cpuFleet:        1, cpuPostgres: 2, cpuRedis: 0.25, cpuPgBouncer: 0.75, cpuPerOp: 10_000,
	}
	if !maps.Equal(m.Values, want) {
		t.Errorf("got  %v\nwant %v", m.Values, want)
	}

	for name, spoil := range map[string]func(){
		"cpu":      func() { after.cpuAt = at(1.9) },
		"redis":    func() { after.redisAt = at(2.9) },
		"sessions": func() { after.sessionsAt = at(4.9) },
	} {
		late := after
		spoil()
		m := measurement{Values: map[string]float64{opsPerSecond: 100}}
		m.addCounters(4*time.Second, before, after)
		_, cpu := m.Values[cpuFleet]
		_, redis := m.Values[redisCommandsPerOp]
		_, sessions := m.Values[connectsPerSecond]
		if cpu == (name == "cpu") || redis == (name == "redis") ||
			sessions == (name == "sessions") {
			t.Errorf("a late read of %s: %v", name, m.Values)
		}
		after = late
	}
}

func TestUnknownCountsAreLeftOut(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	before := counters{cpuAt: start, redisAt: start, sessionsAt: start, sessions: -1}
	after := counters{cpuAt: start.Add(time.Second), redisAt: start.Add(time.Second),
		sessionsAt: start.Add(time.Second), sessions: -1}
	m := measurement{Values: map[string]float64{opsPerSecond: 0}}
	m.addCounters(time.Second, before, after)
	if len(m.Values) != 1 {
		t.Errorf("without operations, CPU times and counts of sessions: %v", m.Values)
	}
}

func TestSamplesOfTheMeasuredTime(t *testing.T) {
	o := Options{warmup: time.Second, duration: 2 * time.Second}
	m := measurement{Values: make(map[string]float64)}
	m.addSamples([]backends.Sample{
		{At: 0, Open: 30, Busy: 1}, {At: time.Second, Open: 10, Busy: 2},
		{At: 2999 * time.Millisecond, Open: 20, Busy: 4}, {At: 3 * time.Second, Open: 0, Busy: 25},
	}, o)
	want := map[string]float64{openPeak: 30, openMean: 15, busyPeak: 25, busyMean: 3,
		samplesTaken: 4}
	if !maps.Equal(m.Values, want) {
		t.Errorf("got %v, want %v", m.Values, want)
	}
}

func TestMeasureTellsTheModestFromTheGreedy(t *testing.T) {
	report := func(operations int64, took time.Duration) fleet.Report {
		l := fleet.NewLatency()
		l.Record(took)
		encoded, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return fleet.Report{Counts: fleet.Counts{Operations: operations, Refused: 1}, Served: 1,
			Total: encoded, Wait: encoded,
			Progress: fleet.Progress{Bins: []int64{operations}, Gap: took}}
	}
	reports := []fleet.Report{report(900, time.Second), report(50, time.Millisecond),
		report(50, 2*time.Millisecond)}
	sp := spec{scenario: scenario{shape: mustShape("1x9+2x1")}, strategy: perConn, capacity: 3}
	m, err := measure(sp, Options{duration: 2 * time.Second}, reports)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		opsPerSecond: 500, greedyOps: 450, modestOps: 50, jainIndex: 1, operationsFailed: 3,
		operationsRefused: 3, goroutinesServed: 3,
		worstWindowOps: 50, longestGap: 1000,
	} {
		if m.Values[name] != want {
			t.Errorf("%s is %v, want %v", name, m.Values[name], want)
		}
	}
	if all, modest := m.Values[latencyMax], m.Values[modestPrefix+latencyMax]; all < 1000 ||
		modest > 3 {
		t.Errorf("the longest took %v ms, of the modest ones %v ms", all, modest)
	}
	sp.control = true
	if m, err = measure(sp, Options{duration: 2 * time.Second}, reports[1:]); err != nil ||
		m.Values[greedyOps] != 0 || m.Values[modestOps] != 50 {
		t.Errorf("the modest ones alone: %v, %v", m.Values, err)
	}
}

// reportsOf returns reports of two workers, with n latencies each.
func reportsOf(t *testing.T, n int, since time.Time) (reports []fleet.Report) {
	t.Helper()
	l := fleet.NewLatency()
	for i := range n {
		l.Record(time.Duration(1+i) * time.Microsecond)
	}
	encoded, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r := fleet.Report{Total: encoded, Wait: encoded}
		r.Counts = fleet.Counts{Operations: 10, Shed: 3, Unfinished: 2}
		r.Connects.Since = since
		r.Connects.Bins = make([]int64, 100) // 5 s
		r.Connects.Bins[0], r.Connects.Bins[59], r.Connects.Bins[60], r.Connects.Bins[99] =
			5, 7, 11, 100
		r.Progress.Bins = []int64{1, 2, 3, 4}
		reports = append(reports, r)
	}
	return reports
}

func TestFewOperationsHaveNoHighPercentile(t *testing.T) {
	sp := spec{capacity: 20, scenario: scenario{
		table: openTable, workload: sleep20, shape: shape{"2", []group{{2, 10}}},
		load: load{percent: 30},
	}}
	for n, want := range map[int]bool{499: false, 500: true} {
		m, err := measure(sp, Options{duration: time.Second}, reportsOf(t, n, time.Now()))
		if err != nil {
			t.Fatal(err)
		}
		if _, got := m.Values[latencyP999]; got != want || m.Values[latencyP99] <= 0 {
			t.Errorf("p99.9 of %d operations: %v, want %v", 2*n, got, want)
		}
		v := m.Values
		if v[operationsShed] != 6 || v[operationsUnfinished] != 4 || v[offeredPerSecond] != 300 {
			t.Errorf("%v", v)
		}
	}
}

// Connects after the measured time only cancel queries. Connects of the first 3 s belong to the
// start.
func TestConnectsOfTheStartAreTold(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	m := measurement{Values: make(map[string]float64)}
	span := fleet.Span{Begin: begin, From: begin.Add(time.Second),
		Until: begin.Add(4950 * time.Millisecond)}
	m.addConnects(reportsOf(t, 1, begin), span)
	if m.Values[connectsTotal] != 46 || m.Values[connectsSettled] != 22/1.95 {
		t.Errorf("%v, want 46 connects, and 22 of them in the 1.95s after 3s", m.Values)
	}
	m = measurement{Values: make(map[string]float64)}
	span.Until = begin.Add(settled)
	m.addConnects(reportsOf(t, 1, begin), span)
	if _, there := m.Values[connectsSettled]; there {
		t.Error("a run of 3s has connects after 3s")
	}
}
