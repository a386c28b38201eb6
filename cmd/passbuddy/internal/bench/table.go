package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
)

func (m machine) String() string {
	bouncer := "no PgBouncer"
	if m.PgBouncer != "" {
		bouncer = "PgBouncer " + m.PgBouncer
	}
	memory := ""
	if m.Memory != "" {
		memory = ", memory " + m.Memory
	}
	return fmt.Sprintf("%s, %d cores%s; %s, %s; %s, PostgreSQL %s, Redis %s, %s; load at start %s",
		m.CPU, m.Cores, memory, m.OS, m.Kernel, m.Go, m.Postgres, m.Redis, bouncer,
		or(m.Load, "unknown"))
}

// column is one column of a table of cells.
type column struct {
	title string
	text  func(*cell) string
}

func median(name string) func(*cell) string {
	return func(c *cell) string {
		return c.show(name, func(s spread) string { return figure(s.Median) })
	}
}

func highest(name string) func(*cell) string {
	return func(c *cell) string {
		return c.show(name, func(s spread) string { return figure(s.Max) })
	}
}

// columnsFor returns the columns for one scenario's cells, in two tables: what callers get, and
// what it costs.
func columnsFor(group []*cell, capacity int) [2][]column {
	name := column{"", func(c *cell) string { return c.title() }}
	results := []column{
		name,
		{"ops/s", func(c *cell) string { return c.show(opsPerSecond, withRange) }},
		{"x PgB tx", func(c *cell) string { return c.ratio(bouncerTx) }},
		{"x static", func(c *cell) string { return c.ratio(static) }},
	}
	if group[0].spec.scenario.shape.uneven() {
		results = append(results,
			column{"greedy ops/s", median(greedyOps)}, column{"modest ops/s", median(modestOps)},
			column{"modest: p50 ms", median(modestPrefix + latencyP50)},
			column{"p99", median(modestPrefix + latencyP99)},
			column{"max", highest(modestPrefix + latencyMax)},
			column{"wait p99", median(modestPrefix + "wait_p99_ms")})
	} else {
		results = append(results, column{"p50 ms", median(latencyP50)},
			column{"p99", median(latencyP99)}, column{"max", highest(latencyMax)})
	}
	results = append(results,
		column{"errors", median(operationsFailed)},
		column{"served", func(c *cell) string {
			return c.show(goroutinesServed, func(s spread) string {
				return fmt.Sprintf("%.0f/%d", s.Median, c.Goroutines)
			})
		}},
		column{"Jain", func(c *cell) string {
			return c.show(jainIndex, func(s spread) string { return fmt.Sprintf("%.3f", s.Median) })
		}})
	if !group[0].spec.scenario.shape.uneven() {
		results = append(results, column{"worst window", func(c *cell) string {
			return c.show(worstWindowOps, func(s spread) string { return figure(s.Min) })
		}}, column{"gap ms", highest(longestGap)})
	}
	cpu := func(part string) func(*cell) string {
		return func(c *cell) string {
			return c.show(part, func(s spread) string { return fmt.Sprintf("%.2f", s.Median) })
		}
	}
	return [2][]column{results, {
		name,
		{fmt.Sprintf("peak backends (cap %d)", capacity), func(c *cell) string { return c.peak() }},
		{"mean", median(openMean)},
		{"busy: peak", highest(busyPeak)},
		{"mean", median(busyMean)},
		{"Redis cmds/op", median(redisCommandsPerOp)},
		{"scripts/op", median(redisScriptsPerOp)},
		{"connects/s", median(connectsPerSecond)},
		{"connects", median(connectsTotal)},
		{"CPU s: fleet", cpu(cpuFleet)},
		{"Postgres", cpu(cpuPostgres)},
		{"Redis", cpu(cpuRedis)},
		{"PgBouncer", cpu(cpuPgBouncer)},
		{"CPU µs/op", median(cpuPerOp)},
	}}
}

func (c *cell) title() string {
	if c.ModestAlone {
		return c.spec.strategy.title + " (modest alone)"
	}
	return c.spec.strategy.title
}

func (c *cell) show(name string, text func(spread) string) string {
	if s, ok := c.Summary[name]; ok {
		return text(s)
	}
	return "-"
}

func (c *cell) ratio(to strategy) string { return ratioText(c.Ratios, to) }

// peak returns the peak, with a mark if the strategy does not cap it.
func (c *cell) peak() string {
	return c.show(openPeak, func(s spread) string {
		if c.CapIsFor == capsOpen {
			return figure(s.Max)
		}
		return figure(s.Max) + ", not capped"
	})
}

// writeTables writes all tables for a terminal. The JSON has more values.
func writeTables(out io.Writer, r *report) {
	for _, s := range r.sections() {
		fmt.Fprintf(out, "\n%s\n", s.title)
		for _, columns := range s.columns(r.Settings.Capacity) {
			writeAligned(out, tableOf(s.cells(), columns))
		}
		for _, note := range s.notes() {
			fmt.Fprintln(out, "  "+note)
		}
		for _, c := range s.cells() {
			writeFailures(out, c)
		}
	}
	for _, t := range allTables {
		if text := t.about(); text != "" && r.shows(t) {
			fmt.Fprintf(out, "\n%s: %s\n", t.name, text)
		}
	}
	fmt.Fprintf(out, `
%s (lowest..highest); peaks, max and gap are the highest of all rounds. Worst window is the fewest operations that a process
had in any %gs, gap the longest that one was without, Jain the index of fairness of operations by process. Times are of whole
operations, those that never ended included as far as they got. Ratios are of operations/s within a round. Backends are pg_stat_activity's;
the mean of the busy ones leaves out queries shorter than the counting.
`, mediansOf(r.rounds()), r.Settings.ProgressWindow)
	if !r.Complete {
		fmt.Fprintln(out, "The run is not complete: some cells have fewer rounds, or none.")
	}
	if len(r.Targets) > 0 {
		fmt.Fprintln(out, "\nTargets")
		rows := [][]string{{"", "want", "median", "lowest..highest", "", ""}}
		for _, t := range r.Targets {
			rows = append(rows, t.row())
		}
		writeAligned(out, rows)
	}
}

// rounds returns the highest number of rounds of any cell.
func (r *report) rounds() (n int) {
	for _, c := range r.Cells {
		n = max(n, len(c.Rounds))
	}
	return n
}

func mediansOf(rounds int) string {
	if rounds == 1 {
		return "One round"
	}
	return fmt.Sprintf("Medians of up to %d rounds", rounds)
}

func (t target) row() []string {
	met := "missed"
	if t.Met {
		met = "met"
	}
	worst := ""
	if t.Worst != "" {
		worst = "worst: " + t.Worst
	}
	return []string{t.What, t.Want, ratioFigure(t.Figure.Median), ratioFigure(t.Figure.Min) + ".." +
		ratioFigure(t.Figure.Max), met, worst}
}

// ratioFigure shows one digit more than figure, because that digit can decide a target.
func ratioFigure(v float64) string {
	if v < 10 {
		return strings.TrimSuffix(fmt.Sprintf("%.3f", v), ".000")
	}
	return figure(v)
}

// notes returns why cells have no figures.
func (s section) notes() (notes []string) {
	for _, c := range s.cells() {
		if !c.measured() {
			note := noteOf(c)
			if row := c.spec.scenario.row(); row != "" {
				note = row + ": " + note
			}
			notes = append(notes, note)
		}
	}
	return notes
}

// shows reports whether a table is in the report.
func (r *report) shows(t *table) bool {
	return slices.ContainsFunc(r.Cells, func(c *cell) bool {
		return c.spec.scenario.inTable() == t
	})
}

func noteOf(c *cell) string {
	switch {
	case c.Note != "":
		return c.title() + ": " + c.Note
	case len(c.Rounds) > 0:
		return c.title() + ": failed: " + c.Rounds[0].Error
	}
	return c.title() + ": not run"
}

func writeFailures(out io.Writer, c *cell) {
	all := make(map[string]int64)
	for _, m := range c.Rounds {
		for text, n := range m.Failures {
			all[text] += n
		}
	}
	for _, text := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(out, "  %s: %s x %s\n", c.title(), show.Thousands(all[text]), text)
	}
}

// tableOf returns a head and the cells that have figures.
func tableOf(group []*cell, columns []column) [][]string {
	head := make([]string, len(columns))
	for i, column := range columns {
		head[i] = column.title
	}
	rows := [][]string{head}
	for _, c := range group {
		if !c.measured() {
			continue
		}
		row := make([]string, len(columns))
		for i, column := range columns {
			row[i] = column.text(c)
		}
		rows = append(rows, row)
	}
	return rows
}

// writeAligned aligns the first column to the left, the others to the right.
func writeAligned(out io.Writer, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, text := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, text := range row {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if i == 0 {
				line.WriteString("  " + text + space)
			} else {
				line.WriteString("  " + space + text)
			}
		}
		fmt.Fprintln(out, strings.TrimRight(line.String(), " "))
	}
}
