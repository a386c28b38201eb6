package bench

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
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
