package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// The tests' program is also the fleet's workers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == fleet.WorkerCommand {
		os.Exit(fleet.RunWorker())
	}
	goleak.VerifyTestMain(m)
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// needServers skips the test if a server is not installed, or under -short.
func needServers(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this runs fleets of processes for some seconds")
	}
	_, noPostgres := throwaway.FindPostgres(t.Context())
	_, noRedis := throwaway.FindRedis()
	for _, err := range []error{noPostgres, noRedis} {
		if errors.Is(err, throwaway.ErrNotFound) {
			t.Skip("the benchmarks need real servers (make test installs them): ", err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A small run of every cell: each strategy works, keeps its cap, and has all its figures.
func TestBench(t *testing.T) {
	t.Parallel() // beside the other whole benchmark: each waits half of its time
	needServers(t)
	patiently(t, benchEveryCell)
}

// patiently runs a benchmark again, once or twice, if it measured nothing: the machine can stand
// still for longer than the measurement takes. run returns what was not measured, and fails for all
// else.
func patiently(t *testing.T, run func(*testing.T) (missing []string)) {
	t.Helper()
	const tries = 3
	for try := 1; ; try++ {
		missing := run(t)
		if len(missing) == 0 {
			return
		}
		if try == tries {
			t.Fatalf("nothing was measured, %d times: %q", tries, missing)
		}
		t.Logf("nothing was measured: %q", missing)
	}
}

func benchEveryCell(t *testing.T) (missing []string) {
	o := parse(t, "-cap", "3", "-duration", "300ms", "-warmup", "200ms", "-rounds", "1",
		"-json", filepath.Join(t.TempDir(), "bench.json"), "-svg",
		filepath.Join(t.TempDir(), "pictures"))
	o.plan = []scenario{
		{integration: fleet.Pgxpool, workload: select1, shape: mustShape("2x2"),
			strategies: allStrategies},
		{integration: fleet.SQL, workload: threeSteps, shape: mustShape("1x4+1x1"),
			strategies: []strategy{perConn}},
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
	if !r.Complete || len(r.Cells) != len(allStrategies)+2 {
		t.Errorf("complete %v, %d cells", r.Complete, len(r.Cells))
	}
	for _, c := range r.Cells {
		if strings.HasPrefix(c.Note, "skipped: PgBouncer") {
			t.Log(c.Strategy, c.Note)
			continue
		}
		if len(c.Rounds) != 1 || c.Rounds[0].Error != "" {
			t.Errorf("%s: %+v", c.Strategy, c)
			continue
		}
		missing = append(missing, expectSound(t, o, c)...)
	}
	if pictures, err := filepath.Glob(filepath.Join(o.svg, "*.svg")); len(missing) == 0 &&
		(err != nil || len(pictures) != 2) {
		t.Errorf("pictures %v, %v", pictures, err)
	}
	return missing
}

func expectSound(t *testing.T, o Options, c *cell) (missing []string) {
	t.Helper()
	v := c.Rounds[0].Values
	if v[operationsFailed] != 0 {
		t.Errorf("%s: %v", c.Strategy, v)
	}
	if v[opsPerSecond] <= 0 || v[goroutinesServed] < 1 || v[latencyMax] <= 0 || v[jainIndex] <= 0 {
		missing = append(missing, fmt.Sprintf("%s: %v", c.Strategy, v))
	}
	if peak, _ := c.capped(); peak.Max > float64(o.capacity) && c.CapIsFor != capsNone {
		t.Errorf("%s: %v %s backends, cap %d", c.Strategy, peak.Max, c.CapIsFor, o.capacity)
	}
	if v[openPeak] < 1 || v[samplesTaken] < 2 {
		missing = append(missing, fmt.Sprintf("%s: at most %v backends in %v samples", c.Strategy,
			v[openPeak], v[samplesTaken]))
	}
	for _, name := range []string{longestGap, worstWindowOps} {
		if _, there := v[name]; !there {
			t.Errorf("%s: no %s", c.Strategy, name)
		}
	}
	if c.spec.scenario.shape.uneven() && v[modestOps] <= 0 {
		missing = append(missing, fmt.Sprintf("%s: the modest process did nothing: %v", c.Strategy, v))
	}
	return missing
}

func TestBenchIsInterrupted(t *testing.T) {
	needServers(t)
	o := parse(t, "-cap", "2", "-duration", "100ms", "-warmup", "0s", "-rounds", "1000",
		"-workloads", "select1", "-shapes", "1x2", "-strategies", "static",
		"-json", filepath.Join(t.TempDir(), "bench.json"), "-svg", "")
	ctx, cancel := context.WithCancel(testContext(t))
	// the first line of progress: a cell is complete
	status := &signalWriter{written: make(chan struct{}, 1)}
	var out bytes.Buffer
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o, &out, status) }()
	select {
	case <-status.written:
	case err := <-ended:
		t.Fatalf("the run ended before its interruption: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	text, err := os.ReadFile(o.json)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(`"complete": false`)) ||
		!bytes.Contains(text, []byte(opsPerSecond)) ||
		!strings.Contains(out.String(), "not complete") {
		t.Errorf(
			"an interrupted run does not show the cells that it has, or does not say that it is "+
				"incomplete:\n%s\n%s", text, &out)
	}
}

type signalWriter struct{ written chan struct{} }

func (w *signalWriter) Write(p []byte) (int, error) {
	select {
	case w.written <- struct{}{}:
	default:
	}
	return len(p), nil
}

// Postgres itself counts the connects, and counts each at once.
func TestSessionsAreCounted(t *testing.T) {
	needServers(t)
	p, err := throwaway.StartPostgres(testContext(t), throwaway.PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	ctx := testContext(t)
	admin, err := pgx.Connect(ctx, p.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(ctx)
	before, err := readSessions(ctx, admin)
	if err != nil {
		t.Fatal(err)
	}
	if before < 0 {
		t.Skip("this PostgreSQL is older than 14 and does not count sessions")
	}
	for range 10 {
		conn, err := pgx.Connect(ctx, p.URL())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close(ctx)
	}
	conn, err := pgx.Connect(ctx, p.URL()) // and one that stays
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for { // until Postgres has caught up, or ctx ends
		after, err := readSessions(ctx, admin)
		if err != nil {
			t.Fatal("10 sessions ended and one open: ", err)
		}
		if after == before+11 {
			return
		}
		if after > before+11 {
			t.Fatalf("%d sessions, want 11", after-before)
		}
	}
}

// A small run of each table has figures, no failures, and timelines where they belong.
func TestBenchOfEveryTable(t *testing.T) {
	t.Parallel() // beside the other whole benchmark: each waits half of its time
	needServers(t)
	patiently(t, benchEveryTable)
}

func benchEveryTable(t *testing.T) (missing []string) {
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
		if m.Values[operationsFailed] != 0 {
			t.Errorf("%s %s: %v", c.Table, c.Strategy, m.Values)
		}
		if m.Values[opsPerSecond] <= 0 || m.Values[latencyP99] <= 0 || m.Values[connectsTotal] < 1 {
			missing = append(missing, fmt.Sprintf("%s %s: %v", c.Table, c.Strategy, m.Values))
		}
		drawn := c.Table == coldTable.name || c.Table == changesTable.name
		if (m.Timeline != nil) != drawn {
			t.Errorf("%s %s: timeline %+v", c.Table, c.Strategy, m.Timeline)
		}
		if drawn &&
			(len(m.Timeline.Operations) != 8 ||
				(len(m.Timeline.OnTheirWay) == 8) != (c.Strategy == perConn.name)) {
			t.Errorf("%s %s: %+v, %v", c.Table, c.Strategy, m.Timeline, m.Values)
		}
		if drawn && m.Values[steadyOps] <= 0 {
			missing = append(missing, fmt.Sprintf("%s %s: %+v, %v", c.Table, c.Strategy, m.Timeline,
				m.Values))
		}
		if c.Table == openTable.name && m.Values[offeredPerSecond] != 80 {
			t.Errorf("%v operations/s offered, want 80", m.Values[offeredPerSecond])
		}
		if c.Table == changesTable.name && len(m.PerProcess) != 2 {
			t.Errorf("%d processes reported, want 2", len(m.PerProcess))
		}
	}
	if pictures, err := filepath.Glob(filepath.Join(o.svg, "timeline-*.svg")); len(missing) == 0 &&
		(err != nil || len(pictures) != 2) {
		t.Errorf("pictures %v, %v", pictures, err)
	}
	return missing
}
