package bench

import (
	"fmt"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// target is a figure that PassBuddy should reach, and this run's value.
type target struct {
	What   string `json:"what"`
	Want   string `json:"want"`
	Figure spread `json:"figure"`
	// the cell of the figure, if several cells had to meet the target
	Worst string `json:"worst,omitempty"`
	Met   bool   `json:"met"`
}

const (
	even50 = "4x50"
	crowd  = "40x5"
	half   = "20x10"
	uneven = "uneven"
)

// judge compares the figures with the targets, and leaves out targets that this run did not
// measure.
func judge(r *report) (targets []target) {
	add := func(t target, ok bool) {
		if ok {
			targets = append(targets, t)
		}
	}
	for _, t := range []struct {
		integration  string
		workload     workload
		rival        strategy
		least        float64
		what, metric string
	}{
		{fleet.Pgxpool, select1, bouncerTx, 2, "pgxpool", opsPerSecond},
		{fleet.Pgxpool, select1, static, 0.95, "pgxpool", opsPerSecond},
		{fleet.SQL, select1, bouncerTx, 1.5, "database/sql", opsPerSecond},
		{fleet.SQL, select1, static, 0.85, "database/sql", opsPerSecond},
		{fleet.Pgxpool, sleep5, bouncerTx, 1, "pgxpool", opsPerSecond},
	} {
		ratio, ok := r.ratio(t.integration, t.workload.name, even50, t.rival, t.metric)
		add(atLeast(fmt.Sprintf("%s, %s, %s: operations/s over those of %s", t.what,
			t.workload.title, even50, t.rival.title), ratio, t.least), ok)
	}
	p99, ok := r.ratio(fleet.Pgxpool, sleep5.name, even50, bouncerTx, latencyP99)
	add(atMost(fmt.Sprintf("pgxpool, %s, %s: p99 over that of %s", sleep5.title, even50,
		bouncerTx.title), p99, 1), ok)

	for _, st := range []strategy{perConn, perOut} {
		add(r.lowest(st, "Jain's index of operations by process", 0.97, func(c *cell) spread {
			return c.Summary[jainIndex]
		}))
	}
	for _, st := range []strategy{perConn, perOut} {
		add(r.highestPeak(st))
	}
	add(r.lowest(perConn, "mean backends over the cap", 0.95, func(c *cell) spread {
		_, mean := c.capped()
		return mean.over(float64(r.Settings.Capacity))
	}))
	for _, w := range allWorkloads {
		add(r.besideGreedy(w))
	}
	add(r.everyoneProgresses())
	many := r.find(fleet.Pgxpool, select1.name, crowd, perConn.name, false)
	few := r.find(fleet.Pgxpool, select1.name, half, perConn.name, false)
	if many != nil && few != nil {
		ratio, ok := many.ratioTo(few, opsPerSecond)
		add(atLeast("select 1: operations/s of 40 processes over those of 20", ratio, 0.8), ok)
	}
	return append(judgeTables(r), targets...)
}

func atLeast(what string, figure spread, bound float64) target {
	return target{What: what, Want: fmt.Sprintf(">= %g", bound), Figure: figure,
		Met: figure.Median >= bound}
}

func atMost(what string, figure spread, bound float64) target {
	return target{What: what, Want: fmt.Sprintf("<= %g", bound), Figure: figure,
		Met: figure.Median <= bound}
}

func (s spread) over(n float64) spread { return spread{s.Median / n, s.Min / n, s.Max / n} }

// ratio returns PassBuddy's value over a rival's.
func (r *report) ratio(integration, workload, shape string, rival strategy,
	name string) (spread, bool) {
	ours, theirs := r.find(integration, workload, shape, perConn.name, false), r.find(integration,
		workload, shape, rival.name, false)
	if ours == nil || theirs == nil {
		return spread{}, false
	}
	return ours.ratioTo(theirs, name)
}

// saturated returns the cells of a strategy in which more callers want a connection than the cap
// allows, equally many in each process.
func (r *report) saturated(st strategy) (cells []*cell) {
	for _, c := range r.Cells {
		if c.Table == "" && c.Strategy == st.name && c.measured() &&
			!c.spec.scenario.shape.uneven() && c.Goroutines > r.Settings.Capacity {
			cells = append(cells, c)
		}
	}
	return cells
}

// lowest returns the target that a value is at least bound in every saturated cell.
func (r *report) lowest(st strategy, what string, bound float64,
	value func(*cell) spread) (t target, ok bool) {
	for _, c := range r.saturated(st) {
		if v := value(c); !ok || v.Median < t.Figure.Median {
			t, ok = atLeast(st.title+": "+what+", every even shape", v, bound), true
			t.Worst = c.where()
		}
	}
	return t, ok
}

// highestPeak returns the target that no sample of any cell and round exceeds the cap.
func (r *report) highestPeak(st strategy) (t target, ok bool) {
	for _, c := range r.Cells {
		if c.Strategy != st.name || !c.measured() {
			continue
		}
		if peak, _ := c.capped(); !ok || peak.Max > t.Figure.Max {
			t, ok = target{
				What: fmt.Sprintf("%s: peak of %s backends in all samples", st.title, c.CapIsFor),
				Want: fmt.Sprintf("<= %d", r.Settings.Capacity), Figure: peak,
				Met: peak.Max <= float64(r.Settings.Capacity), Worst: c.where(),
			}, true
		}
	}
	return t, ok
}

// shortWait is a wait in ms; shorter waits count as this one. Whether a warm checkout takes 3 or 30
// microseconds depends on the scheduler.
const shortWait = 0.1

// besideGreedy returns the target that a greedy process hardly slows modest ones.
func (r *report) besideGreedy(w workload) (t target, ok bool) {
	with, without := r.find(fleet.Pgxpool, w.name, uneven, perConn.name,
		false), r.find(fleet.Pgxpool, w.name, uneven, perConn.name, true)
	if with == nil || without == nil {
		return t, false
	}
	const p99 = modestPrefix + "wait_p99_ms"
	ratio, ok := with.ratioOf(without, func(of *cell, round int) (float64, bool) {
		v, ok := of.value(round, p99)
		return max(v, shortWait), ok
	})
	return atMost(
		fmt.Sprintf(
			"%s: modest processes' p99 wait (or %gms) beside a greedy one over that without it",
			w.title, shortWait), ratio, 3), ok
}

// everyoneProgresses returns the target that each of 40 processes completes an operation in every
// window of every round.
func (r *report) everyoneProgresses() (t target, ok bool) {
	c := r.find(fleet.Pgxpool, select1.name, crowd, perConn.name, false)
	if c == nil {
		return t, false
	}
	worst := c.Summary[worstWindowOps]
	t = atLeast(fmt.Sprintf("select 1, %s: operations of the process that had fewest in any %gs",
		crowd, r.Settings.ProgressWindow), worst, 1)
	t.Met = worst.Min >= 1
	return t, true
}

func (c *cell) where() string {
	where := fmt.Sprintf("%s %s %s", c.Integration, c.Workload, c.Shape)
	if c.Load != "" {
		where += " " + c.Load
	}
	return where
}
