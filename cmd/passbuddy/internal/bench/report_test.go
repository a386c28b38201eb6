package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// testReport has figures for everything that o plans. Each strategy is a tenth better than the one
// before; rounds differ.
func testReport(t *testing.T, o Options) *report {
	t.Helper()
	s := &servers{pgBouncerVersion: "1.21.0", execMode: "exec"}
	r := &report{Schema: schema, Started: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC),
		Complete: true,
		Machine:  machine{CPU: "a <CPU> & more", Cores: 2, PgBouncer: "1.21.0"},
		Settings: settingsOf(o, s), Cells: newCells(o, s)}
	for _, c := range r.Cells {
		if c.Note != "" {
			continue
		}
		for round := 1; round <= o.timedAs(c.spec.scenario).rounds; round++ {
			place := slices.IndexFunc(allStrategies, func(s strategy) bool {
				return s.name == c.Strategy
			})
			ops := float64(1000*round) * (1 + 0.1*float64(place))
			v := map[string]float64{
				opsPerSecond: ops, latencyP50: 1, latencyP99: 20, latencyMax: 300,
				operationsFailed: 0, goroutinesServed: float64(c.Goroutines), jainIndex: 0.99,
				openPeak: 20, openMean: 19.5, busyPeak: 20, busyMean: 3, worstWindowOps: 3,
				longestGap: 100, redisCommandsPerOp: 0.001,
				connectsPerSecond: 1, cpuFleet: 1, cpuPostgres: 2, cpuRedis: 0.1, cpuPgBouncer: 0,
				cpuPerOp: 100,
			}
			if c.Table != "" {
				v[latencyP999], v[connectsTotal], v[connectsSettled], v[openSettled] =
					25, 20, 0.1, 20
			}
			if c.Table == openTable.name {
				v[offeredPerSecond], v[operationsShed], v[operationsUnfinished] =
					c.spec.offered(), 0, 0
			}
			if c.spec.scenario.drawn() {
				v[steadyOps], v[firstSecondOps], v[timeToSteadyMs] = ops, ops, 150
				v[lowestOps], v[lowestToSteady], v[longestLow] = ops/2, 0.5, 200
			}
			if c.spec.scenario.shape.uneven() {
				for name, ms := range map[string]float64{"latency_p50_ms": 1, "latency_p99_ms": 10,
					"latency_max_ms": 30, "wait_p99_ms": 0.5} {
					v[modestPrefix+name] = ms
				}
				v[greedyOps], v[modestOps] = ops-100, 100
			}
			c.Rounds = append(c.Rounds,
				measurement{Round: round, Values: v, PerProcess: []int64{1, 2}})
		}
	}
	r.finish()
	return r
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3}, spread{3, 3, 3}}, {[]float64{4, 1}, spread{2.5, 1, 4}},
		{[]float64{9, 1, 2}, spread{2, 1, 9}},
	} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("spreadOf(%v) is %+v, want %+v", c.values, got, c.want)
		}
	}
}

func measured(round int, ops float64) measurement {
	return measurement{Round: round, Values: map[string]float64{opsPerSecond: ops}}
}

// A ratio compares values of one round, because a slow machine slows both strategies of that round.
func TestRatiosAreOfOneRound(t *testing.T) {
	spoilt := measured(4, 99)
	spoilt.Error = "its processes did not end"
	ours := &cell{Rounds: []measurement{measured(1, 200), measured(2, 20), measured(3, 2), spoilt}}
	theirs := &cell{Rounds: []measurement{measured(1, 100), measured(2, 10),
		{Round: 3, Error: "failed"}, measured(4, 1)}}
	got, ok := ours.ratioTo(theirs, opsPerSecond)
	if want := (spread{2, 2, 2}); !ok || got != want {
		t.Errorf("%+v, %v; want %+v", got, ok, want)
	}
	if _, ok := ours.ratioTo(&cell{Rounds: []measurement{measured(9, 1)}}, opsPerSecond); ok {
		t.Error("ratioTo returned a ratio without a common round")
	}
	if _, ok := ours.ratioTo(&cell{Rounds: []measurement{measured(1, 0)}}, opsPerSecond); ok {
		t.Error("ratioTo returned a ratio to a cell without figures")
	}
}

func TestJudge(t *testing.T) {
	r := testReport(t, parse(t))
	for _, target := range r.Targets {
		// In this report PassBuddy is 25 % better than PgBouncer.
		missed := strings.Contains(target.What, "over those of PgBouncer") && target.Want != ">= 1"
		if target.Met == missed {
			t.Errorf("met %v: %+v", target.Met, target)
		}
	}
	if len(r.Targets) < 14 {
		t.Errorf("%d targets of a full run", len(r.Targets))
	}
	if got := testReport(t, parse(t, "-quick", "-strategies", "bare")).Targets; len(got) != 0 {
		t.Errorf("targets of a run without PassBuddy: %+v", got)
	}
}

func TestTargetsLookAtTheWorst(t *testing.T) {
	r := testReport(t, parse(t))
	set := func(integration, workload, shape string, st strategy, name string, v float64) {
		c := r.find(integration, workload, shape, st.name, false)
		for _, m := range c.Rounds {
			m.Values[name] = v
		}
	}
	set("pgxpool", "tx", "16x12", perConn, jainIndex, 0.5)
	set("pgxpool", "5ms", "uneven", perConn, openPeak, 21)
	set("sql", "tx", "4x50", perConn, openMean, 11)
	set("pgxpool", "select1", "40x5", perConn, worstWindowOps, 0)
	set("pgxpool", "tx", "uneven", perConn, modestPrefix+"wait_p99_ms", 2)
	// not a reason to miss
	r.find("pgxpool", "5ms", "uneven", perConn.name,
		true).Rounds[0].Values[modestPrefix+"wait_p99_ms"] = 0.0001
	if r.broken() != nil {
		t.Errorf("broken before the figures are worked out: %v", r.broken())
	}
	r.finish()
	for what, where := range map[string]string{
		"PassBuddy: Jain": "pgxpool tx 16x12", "PassBuddy: peak": "pgxpool 5ms uneven",
		"PassBuddy: mean": "sql tx 4x50",
		"select 1, 40x5":  "", "a transaction of three statements: modest": "",
	} {
		found := false
		for _, target := range r.Targets {
			if strings.HasPrefix(target.What, what) {
				found = true
				if target.Met || target.Worst != where {
					t.Errorf("met %v, worst %q, want that it is missed at %q: %+v", target.Met,
						target.Worst, where, target)
				}
			}
		}
		if !found {
			t.Errorf("no target %q", what)
		}
	}
	if err := r.broken(); err == nil || !strings.Contains(err.Error(), "21 backends") ||
		!strings.Contains(err.Error(), "pgxpool 5ms uneven") {
		t.Errorf("a peak over the cap: %v", err)
	}
}

func TestBrokenPromises(t *testing.T) {
	r := testReport(t, parse(t, "-quick"))
	ours, bad := r.find("sql", "select1", "4x50", perOut.name, false), r.find("pgxpool", "select1",
		"4x50", bare.name, false)
	bad.Rounds[0].Values[operationsFailed] = 99 // the bare pool may fail
	r.finish()
	if err := r.broken(); err != nil {
		t.Error(err)
	}
	ours.Rounds[0].Values[operationsFailed] = 3
	bad.Rounds[1] = measurement{Round: 2, Error: "a worker failed"}
	r.finish()
	if err := r.broken(); err == nil || !strings.Contains(err.Error(), "3 operations failed") ||
		!strings.Contains(err.Error(), "round 2 of pgxpool select1 4x50 bare: a worker failed") {
		t.Errorf("%v", err)
	}
}

func TestBusyMachinesAreTold(t *testing.T) {
	for load, told := range map[string]bool{"0.30": false, "1.00": false, "1.10": true,
		"17.20": true, "": false} {
		if got := (machine{Cores: 2, Load: load}).caution(); (got != "") != told {
			t.Errorf("load %q on 2 cores: %q", load, got)
		}
	}
}

func TestTables(t *testing.T) {
	r := testReport(t, parse(t))
	r.find("pgxpool", "select1", "4x50", bare.name, false).Rounds[0].Failures = map[string]int64{
		"connection reset": 1234}
	failed := r.find("pgxpool", "tx", "4x50", original.name, false)
	failed.Rounds = []measurement{{Round: 1, Error: "a worker failed"}}
	r.finish()
	var out bytes.Buffer
	writeTables(&out, r)
	for _, part := range []string{
		"pgxpool, select 1, 4 processes x 50 goroutines", "database/sql (pgx), select 1",
		"uneven demand: 1 process x 200 goroutines (greedy) and 7 x 2 (modest)",
		"PassBuddy, per checkout", "(modest alone)", "bare pool: 1,234 x connection reset",
		"static split: impossible: 40 processes",
		"the original's polling: failed: a worker failed", "20.0, not capped", "Targets", "missed",
	} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("no %q in the tables", part)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "%!"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("%s in the tables", bad)
		}
	}
}

// TestJSON checks the fields that readers of the JSON rely on.
func TestJSON(t *testing.T) {
	o := parse(t, "-rounds", "3")
	o.json, o.svg = filepath.Join(t.TempDir(), "bench.json"), ""
	if err := writeFiles(&bytes.Buffer{}, o, testReport(t, o)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(o.json)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Schema   string
		Complete bool
		Machine  map[string]any
		Settings map[string]any
		Targets  []map[string]any
		Cells    []struct {
			Table, Load                                  string
			Integration, Workload, Shape, Strategy, Note string
			ModestAlone                                  bool `json:"modest_alone"`
			Processes, Goroutines                        int
			Rounds                                       []struct {
				Round      int
				Values     map[string]float64
				PerProcess []int64 `json:"operations_by_process"`
			}
			Summary map[string]struct{ Median, Min, Max float64 }
			Ratios  map[string]struct{ Median float64 } `json:"ratios_ops_per_s"`
		}
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if got.Schema != "passbuddy-bench/1" || !got.Complete || got.Machine["cores"] != 2.0 ||
		got.Settings["cap"] != 20.0 ||
		got.Settings["exec_mode"] != "exec" || len(got.Targets) == 0 ||
		got.Targets[0]["want"] != "<= 1.5" {
		t.Errorf("%s", text[:min(len(text), 2000)])
	}
	seen := make(map[string]bool)
	for _, c := range got.Cells {
		seen[fmt.Sprint(c.Table, c.Load)+fmt.Sprintf("%s %s %s %v %s", c.Integration, c.Workload,
			c.Shape, c.ModestAlone, c.Strategy)] = true
		if c.Note != "" {
			continue
		}
		if len(c.Rounds) != 3 || c.Rounds[2].Round != 3 || len(c.Rounds[0].PerProcess) == 0 ||
			c.Rounds[0].Values["ops_per_s"] == 0 ||
			c.Summary["ops_per_s"].Max <= c.Summary["ops_per_s"].Median ||
			c.Summary["ops_per_s"].Median <= c.Summary["ops_per_s"].Min {
			t.Fatalf("%+v", c)
		}
		if c.Strategy == "passbuddy" && c.Ratios["pgbouncer-tx"].Median == 0 {
			t.Errorf("no ratio: %+v", c)
		}
	}
	if len(seen) != len(got.Cells) || !seen["pgxpool select1 uneven true passbuddy"] ||
		!seen["open60% skewedpgxpool 2ms 8 false uncapped"] || !seen["sql tx 4x50 false static"] {
		t.Errorf("%d cells, %d different", len(got.Cells), len(seen))
	}
}

func TestMarkdownReplacesItsSectionOnly(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "docs", "BENCHMARKS.md")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	r := testReport(t, parse(t, "-quick"))
	pictures := drawPictures(r)
	write := func() string {
		t.Helper()
		if err := writeMarkdown(path, filepath.Join(folder, "pictures"), pictures, r); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	section := write()
	for _, part := range []string{"](../pictures/pgxpool-select1.svg)", "| PassBuddy |",
		"a <CPU> & more", "| what | want |"} {
		if !strings.Contains(section, part) {
			t.Errorf("no %q in\n%s", part, section)
		}
	}
	if err := os.WriteFile(path,
		[]byte("# Mine\n\n"+markBegin+"\nold\n"+markEnd+"\n\nmore of mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := write(), "# Mine\n\n"+section+"\nmore of mine\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if err := os.WriteFile(path, []byte("# Mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeMarkdown(path, folder, pictures, r); err == nil ||
		!strings.Contains(err.Error(), path) {
		t.Errorf("a document without marks: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "# Mine\n" {
		t.Errorf("a document without marks became %q", got)
	}
}
