package demo

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
)

// writeTable compares the runs, one in each column.
func writeTable(out io.Writer, o Options, results []*result) {
	type row struct {
		name  string
		value func(*result) string
	}
	rows := []row{
		{"", func(r *result) string { return r.name }},
		{"operations/s", func(r *result) string {
			return show.Thousands(rate(r.counts.Operations, r.took))
		}},
		{"failed: too many clients", func(r *result) string {
			return show.Thousands(r.counts.Refused)
		}},
		{"failed: other errors", func(r *result) string { return show.Thousands(r.counts.Failed) }},
		{"goroutines ever served", func(r *result) string {
			return fmt.Sprintf("%s of %s", show.Thousands(int64(r.served)),
				show.Thousands(int64(o.processes*o.goroutines)))
		}},
		{"wait for a connection, p50", func(r *result) string { return milliseconds(r.wait, 50) }},
		{"wait for a connection, p99", func(r *result) string { return milliseconds(r.wait, 99) }},
		{"whole operation, p50", func(r *result) string { return milliseconds(r.total, 50) }},
		{"whole operation, p99", func(r *result) string { return milliseconds(r.total, 99) }},
		{peakText(o), func(r *result) string { return fmt.Sprint(r.peak) }},
	}
	// Right-aligned columns need a tab after the last cell too. tabwriter would also align the
	// names to the right, so we pad them here.
	widest := 0
	for _, row := range rows {
		widest = max(widest, len(row.name))
	}
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		cells := []string{row.name + strings.Repeat(" ", widest-len(row.name))}
		for _, r := range results {
			cells = append(cells, row.value(r))
		}
		fmt.Fprintln(table, strings.Join(cells, "\t")+"\t")
	}
	_ = table.Flush() // out's error shows at the next write
	fmt.Fprintln(out,
		"\nTimes are of operations that succeeded. Backends are pg_stat_activity's, counted every",
		sampleInterval)

	for _, r := range results {
		for _, text := range slices.Sorted(maps.Keys(r.failures)) {
			fmt.Fprintf(out, "%s: %s x %s\n", r.name, show.Thousands(r.failures[text]), text)
		}
	}
}

func peakText(o Options) string {
	if o.scope == fleet.ScopeCheckout {
		return fmt.Sprintf("peak of busy backends (cap %d)", o.capacity)
	}
	return fmt.Sprintf("peak of backends (cap %d)", o.capacity)
}

// verdict returns an error if the run with PassBuddy broke the promise.
func verdict(out io.Writer, o Options, with *result) error {
	switch {
	case with.peak > o.capacity:
		return fmt.Errorf("with PassBuddy there were %d backends, more than the cap of %d",
			with.peak, o.capacity)
	case with.counts.Errors() > 0:
		return fmt.Errorf("with PassBuddy %s operations failed",
			show.Thousands(with.counts.Errors()))
	case with.counts.Operations == 0:
		return errors.New("with PassBuddy no operation ended in time: a longer -duration may help")
	}
	fmt.Fprintf(out,
		"With PassBuddy: never more than %d backends in %s samples, and no operation failed.\n",
		with.peak, show.Thousands(int64(len(with.samples))))
	return nil
}

// milliseconds formats a percentile.
func milliseconds(l *fleet.Latency, percentile float64) string {
	if l.Count() == 0 {
		return "-"
	}
	return show.Milliseconds(l.Percentile(percentile))
}
