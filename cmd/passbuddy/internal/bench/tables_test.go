package bench

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// headings returns the headings of a plan.
func headings(plan []scenario) (lines []string) {
	for _, sc := range plan {
		lines = append(lines, sc.heading()+" | "+names(sc.strategies))
	}
	return lines
}

func TestTablesOfTheFullPlan(t *testing.T) {
	plan := headings(parse(t).plan)
	for _, want := range []string{
		"open loop, a query of 2 ms, 8 processes, even demand: 10 % | " +
			"passbuddy,passbuddy-sql,pgbouncer-tx,static,uncapped",
		"open loop, a query of 20 ms, 8 processes, skewed demand (Zipf, s = 1): 90 % | " +
			"passbuddy,passbuddy-sql,pgbouncer-tx,static,uncapped",
		"ordinary traffic, a query of 2 ms and pauses of 50ms, pgxpool: 8x8 | " +
			"passbuddy,pgbouncer-tx",
		"ordinary traffic, a query of 2 ms and pauses of 50ms, database/sql (pgx): 30x4 | " +
			"passbuddy,pgbouncer-tx",
		"cold start, a query of 5 ms, pgxpool: 8x40 | passbuddy,pgbouncer-tx,static",
		"cold start, a query of 5 ms, pgxpool: 100x2 | passbuddy,pgbouncer-tx,static",
		"changes of the fleet under load, a query of 5 ms, 10 goroutines a process, pgxpool: " +
			"rolling deploy, 8 processes replaced one by one" +
			" | passbuddy,pgbouncer-tx,static",
		"changes of the fleet under load, a query of 5 ms, 10 goroutines a process, pgxpool: " +
			"scale-in, from 16 to 4 processes" +
			" | passbuddy,pgbouncer-tx,static",
	} {
		if !slices.Contains(plan, want) {
			t.Errorf("the full plan lacks %q:\n%s", want, strings.Join(plan, "\n"))
		}
	}
	if !strings.HasPrefix(plan[0], "open loop") || !strings.HasPrefix(plan[len(plan)-1],
		"database/sql (pgx), a transaction") {
		t.Errorf("the plan begins with %q and ends with %q", plan[0], plan[len(plan)-1])
	}
}

func TestTablesCanBeChosen(t *testing.T) {
	for args, want := range map[string][]string{
		"-tables cold -match 8x40": {
			"cold start, a query of 5 ms, pgxpool: 8x40 | passbuddy,pgbouncer-tx,static"},
		"-tables traffic -quick -strategies passbuddy -match pgxpool": {
			"ordinary traffic, a query of 2 ms and pauses of 50ms, pgxpool: 8x8 | passbuddy"},
		"-tables saturated,open -quick -strategies uncapped": {
			"open loop, a query of 2 ms, 8 processes, even demand: 60 % | uncapped",
			"open loop, a query of 2 ms, 8 processes, skewed demand (Zipf, s = 1): 60 % | " +
				"uncapped"},
		"-tables saturated,cold -workloads tx -shapes 3x7 -strategies static -match 3x7|tx|three": {
			"pgxpool, a transaction of three statements, 3 processes x 7 goroutines | static"},
	} {
		if got := headings(parse(t, strings.Fields(args)...).plan); !slices.Equal(got, want) {
			t.Errorf("%s: the plan is\n%s\nwant\n%s", args, strings.Join(got, "\n"),
				strings.Join(want, "\n"))
		}
	}
}

// The README promises how long a run takes.
func TestHowLongARunTakes(t *testing.T) {
	s := &servers{pgBouncerVersion: "1.21.0"}
	for args, want := range map[string][2]time.Duration{"": {30 * time.Minute, 42 * time.Minute},
		"-quick": {100 * time.Second, 150 * time.Second}} {
		o := parse(t, strings.Fields(args)...)
		_, takes := (&report{Cells: newCells(o, s)}).runs(o)
		if takes < want[0] || takes > want[1] {
			t.Errorf("%q takes %v, want %v to %v", args, takes, want[0], want[1])
		}
	}
}

func TestTimesOfTables(t *testing.T) {
	o := parse(t)
	if as := o.timedAs(scenario{table: openTable}); as.warmup != 3*time.Second ||
		as.duration != 5*time.Second || as.rounds != 1 {
		t.Errorf("open: %d rounds of %v after %v", as.rounds, as.duration, as.warmup)
	}
	o = parse(t, "-warmup", "1s", "-duration", "700ms", "-rounds", "7")
	for _, table := range allTables {
		as := o.timedAs(scenario{table: table})
		want := time.Second
		if table == coldTable {
			want = 0
		}
		if as.warmup != want || as.duration != 700*time.Millisecond || as.rounds != 7 {
			t.Errorf("%s with flags: %d rounds of %v after %v", table.name, as.rounds, as.duration,
				as.warmup)
		}
	}
}

func TestSpans(t *testing.T) {
	o := Options{warmup: 2 * time.Second, duration: 3 * time.Second}
	for table, lead := range map[*table]time.Duration{openTable: leadTime, trafficTable: 0,
		changesTable: 0} {
		before := time.Now()
		span := o.spanFor(spec{scenario: scenario{table: table}})
		if span.Begin.Before(before.Add(lead)) || span.From.Sub(span.Begin) != o.warmup ||
			span.Until.Sub(span.From) != o.duration || span.BinWidth != 0 {
			t.Errorf("%s: %+v", table.name, span)
		}
	}
	if span := o.spanFor(spec{scenario: scenario{table: coldTable}}); span.BinWidth != coldBins {
		t.Errorf("a cold start: %+v", span)
	}
}

// The open loop comes first, with one table for each query and demand, and the targets after it.
func TestOpenLoopIsTheFirstTable(t *testing.T) {
	r := testReport(t, parse(t))
	sections := r.sections()
	for i, want := range []string{
		"open loop, a query of 2 ms, 8 processes, even demand",
		"open loop, a query of 2 ms, 8 processes, skewed demand (Zipf, s = 1)",
		"open loop, a query of 20 ms, 8 processes, even demand",
		"open loop, a query of 20 ms, 8 processes, skewed demand (Zipf, s = 1)",
	} {
		if sections[i].title != want || len(sections[i].groups) != 4 ||
			len(sections[i].cells()) != 20 {
			t.Errorf("section %d is %q with %d rows, want %q with 20", i, sections[i].title,
				len(sections[i].cells()), want)
		}
	}
	document := markdown("BENCHMARKS.md", "pictures", drawPictures(r), r)
	var last int
	for _, part := range []string{"### Table open", "#### open loop", "### Targets",
		"### Table traffic", "### Table cold", "### Table changes",
		"### select 1 through pgxpool"} {
		at := strings.Index(document, part)
		if at <= last {
			t.Errorf("%q is at %d, before the part that should precede it, at %d", part, at, last)
		}
		last = at
	}
	if strings.Count(document, "### Targets") != 1 {
		t.Error("the targets are there more than once, or not at all")
	}
}

func TestRowsOfTables(t *testing.T) {
	r := testReport(t, parse(t))
	set := func(row, strategy, name string, v float64) {
		t.Helper()
		for _, c := range r.Cells {
			if c.spec.scenario.heading() == row && c.Strategy == strategy {
				for _, m := range c.Rounds {
					m.Values[name] = v
				}
				return
			}
		}
		t.Fatalf("no cell %s %s", row, strategy)
	}
	set("open loop, a query of 20 ms, 8 processes, even demand: 60 %", "passbuddy", latencyP99, 30)
	set("open loop, a query of 20 ms, 8 processes, even demand: 60 %", "passbuddy-sql",
		operationsShed, 77)
	set("changes of the fleet under load, a query of 5 ms, 10 goroutines a process, pgxpool: "+
		"scale-out, from 4 to 16 processes", "passbuddy", longestLow, 700)
	set("cold start, a query of 5 ms, pgxpool: 20x10", "passbuddy", connectsTotal, 31)
	r.finish()
	var out bytes.Buffer
	writeTables(&out, r)
	rows := make(map[string][]string)
	section := ""
	for line := range strings.Lines(out.String()) {
		if line = strings.TrimRight(line, "\n"); !strings.HasPrefix(line, " ") {
			section = line
			continue
		}
		label, _, _ := strings.Cut(strings.TrimSpace(line), "  ")
		rows[section+" / "+label] = strings.Fields(strings.TrimPrefix(strings.TrimSpace(line),
			label))
	}
	for row, want := range map[string]string{
		"open loop, a query of 20 ms, 8 processes, even demand / 60 %: PassBuddy":               "600 1,500 (1,500..1,500) 1.0 30.0 25.0 300 1.50 1.50 0 0 0 0.10 20.0 20.0",
		"open loop, a query of 20 ms, 8 processes, even demand / 60 %: PassBuddy, database/sql": "600 900 (900..900) 1.0 20.0 25.0 300 1.00 1.00 0 77.0 0 0.10 20.0 20.0",
		"open loop, a query of 20 ms, 8 processes, even demand / 60 %: uncapped pool":           "600 900 (900..900) 1.0 20.0 25.0 300 - 1.00 0 0 0 0.10 20.0 20.0, not capped",
		"ordinary traffic, a query of 2 ms and pauses of 50ms, pgxpool / 12x8: PassBuddy":       "2,250 (1,500..3,000) 1.25 1.0 20.0 300 1.00 0 0.10 20.0 20.0",
		"cold start, a query of 5 ms, pgxpool / 20x10: PassBuddy":                               "2,250 (1,500..3,000) 150 2,250 1.0 20.0 300 0 31.0 0.10 20.0 20.0",
		"changes of the fleet under load, a query of 5 ms, 10 goroutines a process, pgxpool / " +
			"scale-out, from 4 to 16 processes: PassBuddy": "1,500 750 0.50 700 1.0 20.0 300 0 20.0 20.0",
	} {
		if got := strings.Join(rows[row], " "); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", row, got, want)
		}
	}
	if !strings.Contains(out.String(), "40x5: static split: impossible: 40 processes") {
		t.Error("no note on a static split of 40 processes that start cold")
	}
	for what, worst := range map[string]string{
		"PassBuddy, open loop":                       "60 %, 20ms, 60% even",
		"rolling deploy, scale-out: longest":         "scale-out, from 4 to 16 processes",
		"cold start, one permit a process: connects": "20x10",
	} {
		i := slices.IndexFunc(r.Targets, func(x target) bool {
			return strings.HasPrefix(x.What, what)
		})
		if i < 0 || r.Targets[i].Worst != worst {
			t.Errorf("%s: target %d of %+v, want its worst at %q", what, i, r.Targets, worst)
			continue
		}
		if met := strings.HasPrefix(what, "PassBuddy"); r.Targets[i].Met != met {
			t.Errorf("met %v: %+v", !met, r.Targets[i])
		}
	}
}

func TestWrap(t *testing.T) {
	text := wrap(strings.Repeat("twelve chars ", 40))
	if strings.Join(strings.Fields(text), " ") != strings.TrimSpace(strings.Repeat("twelve chars ",
		40)) {
		t.Errorf("wrap changed the words:\n%s", text)
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if len(line) > columnLimit || line != strings.TrimSpace(line) || len(line) < 80 &&
			i < len(lines)-1 {
			t.Errorf("a line of %d: %q", len(line), line)
		}
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

// A small run of each table has figures, no failures, and timelines where they belong.
func TestBenchOfEveryTable(t *testing.T) {
	t.Parallel() // beside the other whole benchmark: each waits half of its time
	needServers(t)
	o := parse(t, "-cap", "4", "-duration", "800ms", "-warmup", "200ms", "-rounds", "1",
		"-json", filepath.Join(t.TempDir(), "bench.json"), "-svg",
		filepath.Join(t.TempDir(), "pictures"))
	grow := &change{"growth", "from 1 to 2 processes", 1, 2, scaleSteps(1, 2), 3}
	both := []strategy{perConn, static}
	o.plan = []scenario{
		{table: openTable, integration: fleet.Pgxpool, workload: sleep20,
			shape:      shape{"2", []group{{2, 10}}},
			strategies: []strategy{perConnSQL, uncapped}, load: load{percent: 40, skewed: true}},
		{table: trafficTable, integration: fleet.SQL, workload: sleep2, shape: mustShape("2x2"),
			strategies: both, load: load{pause: 5 * time.Millisecond}},
		{table: coldTable, integration: fleet.Pgxpool, workload: sleep5, shape: mustShape("2x3"),
			strategies: both},
		{table: changesTable, integration: fleet.Pgxpool, workload: sleep5,
			shape: shape{grow.name, []group{{1, 3}}}, strategies: both, change: grow},
	}
	var out, status bytes.Buffer
	if err := Run(testContext(t), o, &out, &status); err != nil {
		t.Errorf("%v\n%s%s", err, &out, &status)
	}
	text, err := os.ReadFile(o.json)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if !r.Complete || len(r.Cells) != 8 {
		t.Fatalf("complete %v, %d cells", r.Complete, len(r.Cells))
	}
	for _, c := range r.Cells {
		if len(c.Rounds) != 1 || c.Rounds[0].Error != "" {
			t.Errorf("%s %s: %+v", c.Table, c.Strategy, c)
			continue
		}
		m := c.Rounds[0]
		if m.Values[opsPerSecond] <= 0 || m.Values[operationsFailed] != 0 ||
			m.Values[latencyP99] <= 0 || m.Values[connectsTotal] < 1 {
			t.Errorf("%s %s: %v", c.Table, c.Strategy, m.Values)
		}
		drawn := c.Table == coldTable.name || c.Table == changesTable.name
		if (m.Timeline != nil) != drawn {
			t.Errorf("%s %s: timeline %+v", c.Table, c.Strategy, m.Timeline)
		}
		if drawn &&
			(len(m.Timeline.Operations) != 8 ||
				(len(m.Timeline.OnTheirWay) == 8) != (c.Strategy == perConn.name) ||
				m.Values[steadyOps] <= 0) {
			t.Errorf("%s %s: %+v, %v", c.Table, c.Strategy, m.Timeline, m.Values)
		}
		if c.Table == openTable.name && m.Values[offeredPerSecond] != 80 {
			t.Errorf("%v operations/s offered, want 80", m.Values[offeredPerSecond])
		}
		if c.Table == changesTable.name && len(m.PerProcess) != 2 {
			t.Errorf("%d processes reported, want 2", len(m.PerProcess))
		}
	}
	if pictures, err := filepath.Glob(filepath.Join(o.svg, "timeline-*.svg")); err != nil ||
		len(pictures) != 2 {
		t.Errorf("pictures %v, %v", pictures, err)
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

// A strategy with an integration of its own runs through that one, beside the others.
func TestStrategiesWithTheirOwnIntegration(t *testing.T) {
	o := parse(t, "-tables", "open", "-match", "2 ms.*even.*10 %")
	cells := newCells(o, &servers{pgBouncerVersion: "1.21.0"})
	for _, c := range cells {
		want := fleet.Pgxpool
		if c.Strategy == perConnSQL.name {
			want = fleet.SQL
		}
		if c.Integration != want || string(c.spec.integration()) != want {
			t.Errorf("%s runs through %s", c.Strategy, c.Integration)
		}
	}
	if groups := (&report{Cells: cells}).groups(); len(groups) != 1 || len(groups[0]) != 5 {
		t.Errorf("%d groups of %d cells, want one", len(groups), len(cells))
	}
}
