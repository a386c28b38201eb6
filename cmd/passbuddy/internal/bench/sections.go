package bench

import (
	"fmt"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// section is a part of the report with one heading. It holds one comparison of the saturated table,
// or all comparisons of another table that differ in one aspect only.
type section struct {
	title  string
	table  *table
	groups [][]*cell
}

// cells returns the section's cells, in order.
func (s section) cells() (cells []*cell) {
	for _, group := range s.groups {
		cells = append(cells, group...)
	}
	return cells
}

// sections returns the parts of the report, in order.
func (r *report) sections() (sections []section) {
	for _, group := range r.groups() {
		sc := group[0].spec.scenario
		title := sc.section()
		if n := len(sections); n > 0 && sections[n-1].title == title {
			sections[n-1].groups = append(sections[n-1].groups, group)
			continue
		}
		sections = append(sections, section{title, sc.inTable(), [][]*cell{group}})
	}
	return sections
}

// section returns the title of the section that shows the scenario.
func (sc scenario) section() string {
	switch sc.inTable() {
	case openTable:
		demand := "even demand"
		if sc.load.skewed {
			demand = "skewed demand (Zipf, s = 1)"
		}
		return fmt.Sprintf("open loop, %s, %d processes, %s",
			sc.workload.title, sc.shape.processes(), demand)
	case trafficTable:
		return fmt.Sprintf("ordinary traffic, %s and pauses of %v, %s",
			sc.workload.title, sc.load.pause, throughText(sc.integration))
	case coldTable:
		return fmt.Sprintf("cold start, %s, %s", sc.workload.title, throughText(sc.integration))
	case changesTable:
		return fmt.Sprintf("changes of the fleet under load, %s, %d goroutines a process, %s",
			sc.workload.title, sc.change.goroutines, throughText(sc.integration))
	}
	first := sc.shape.groups[0]
	form := fmt.Sprintf("%d processes x %d goroutines", first.Processes, first.Goroutines)
	if sc.shape.uneven() {
		m := sc.shape.groups[1]
		form = fmt.Sprintf(
			"uneven demand: %d process x %d goroutines (greedy) and %d x %d (modest)",
			first.Processes, first.Goroutines, m.Processes, m.Goroutines)
	}
	return fmt.Sprintf("%s, %s, %s", throughText(sc.integration), sc.workload.title, form)
}

// row returns the label that distinguishes the scenario within its section.
func (sc scenario) row() string {
	switch sc.inTable() {
	case openTable:
		return fmt.Sprintf("%d %%", sc.load.percent)
	case trafficTable, coldTable:
		return sc.shape.name
	case changesTable:
		return sc.change.name + ", " + sc.change.title
	}
	return ""
}

// lead returns the start of a picture's title, before the row.
func (sc scenario) lead() string {
	if sc.change != nil {
		return "Under load:"
	}
	return "Cold start:"
}

// heading returns the scenario's title.
func (sc scenario) heading() string {
	if row := sc.row(); row != "" {
		return sc.section() + ": " + row
	}
	return sc.section()
}

func throughText(i integration) string {
	if i == fleet.SQL {
		return "database/sql (pgx)"
	}
	return "pgxpool"
}

// about returns one paragraph that explains the table's figures.
func (t *table) about() string {
	switch t {
	case openTable:
		return fmt.Sprintf(
			"Operations arrive as a Poisson process, at a part of the rate that the "+
				"capacity could serve (capacity / query time). No arrival waits for an earlier "+
				"one, and "+
				"latencies count from when the operation was to start. A process sheds an "+
				"arrival while "+
				"it has %d outstanding; shed ones are in no percentile. Operations outstanding "+
				"at the end "+
				"are in, with the time that they have lasted. There is no p99.9 of fewer than "+
				"1,000 "+
				"operations. Connects are the workers' own, those to PgBouncer included.",
			maxOutstanding)
	case trafficTable:
		return fmt.Sprintf(
			"Each goroutine pauses before each query, for an exponential time with a "+
				"mean of %v. Connects are the workers' own, those to PgBouncer included.",
			pauseMean)
	case coldTable:
		return fmt.Sprintf(
			"All processes have joined and have no connection when the load begins, in "+
				"one instant. Steady is the last third of the time. The time to steady is the "+
				"end of the "+
				"first %v that has %g of the steady throughput.", timelineWidth, steadyPart)
	case changesTable:
		return fmt.Sprintf(
			"Steady is the throughput before the first change. Lowest is the worst %v "+
				"after it; low is the longest time below %g of steady. A process that leaves "+
				"finishes "+
				"its operations first. The static split is cut beforehand for the most processes "+
				"that "+
				"there are at once.", timelineWidth, lowPart)
	}
	return ""
}

// columns returns the columns of the section's tables.
func (s section) columns(capacity int) [][]column {
	name := column{"", func(c *cell) string { return c.spec.scenario.row() + ": " + c.title() }}
	ops := column{"ops/s", func(c *cell) string { return c.show(opsPerSecond, withRange) }}
	latencies := []column{{"p50 ms", median(latencyP50)}, {"p99", median(latencyP99)}}
	longest := column{"max", highest(latencyMax)}
	errs := column{"errors", median(operationsFailed)}
	late := column{fmt.Sprintf("connects/s after %v", settled), median(connectsSettled)}
	connects := column{"connects", median(connectsTotal)}
	peak := column{fmt.Sprintf("peak backends (cap %d)", capacity), (*cell).peak}
	overPgBouncer := column{"p99 x PgB tx", latencyRatioText(bouncerTx)}

	var all []column
	add := func(columns ...column) { all = append(all, columns...) }
	add(name)
	switch s.table {
	case openTable:
		add(column{"offered/s", median(offeredPerSecond)}, ops)
		add(latencies...)
		add(column{"p99.9", median(latencyP999)}, longest)
		add(column{"p99 x uncapped", latencyRatioText(uncapped)}, overPgBouncer, errs)
		add(column{"shed", median(operationsShed)},
			column{"unfinished", median(operationsUnfinished)})
		add(late, connects, peak)
	case trafficTable:
		add(ops, column{"x PgB tx", func(c *cell) string { return c.ratio(bouncerTx) }})
		add(latencies...)
		add(longest, overPgBouncer, errs, late, connects, peak)
	case coldTable:
		first := func(c *cell) string { return c.show(firstSecondOps, withRange) }
		add(column{"ops in 1st s", first}, column{"ms to steady", median(timeToSteadyMs)})
		add(column{"ops/s steady", median(steadyOps)})
		add(latencies...)
		add(longest, errs, connects, late)
		add(column{fmt.Sprintf("backends: mean after %v", settled), median(openSettled)}, peak)
	case changesTable:
		add(column{"ops/s steady", median(steadyOps)}, column{"lowest", median(lowestOps)})
		add(column{"of steady", median(lowestToSteady)}, column{"low for ms", highest(longestLow)})
		add(latencies...)
		add(longest, errs, connects, peak)
	default:
		both := columnsFor(s.groups[0], capacity)
		return both[:]
	}
	return [][]column{all}
}

func latencyRatioText(to strategy) func(*cell) string {
	return func(c *cell) string { return ratioText(c.LatencyRatios, to) }
}

func withRange(s spread) string {
	return fmt.Sprintf("%s (%s..%s)", figure(s.Median), figure(s.Min), figure(s.Max))
}

func ratioText(ratios map[string]spread, to strategy) string {
	if s, ok := ratios[to.name]; ok {
		return fmt.Sprintf("%.2f", s.Median)
	}
	return "-"
}
