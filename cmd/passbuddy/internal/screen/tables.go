package screen

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/status"
)

// A column of a table of processes.
type column struct {
	head  string
	width int // 0: what the others leave
	wide  int // shown from this width of the screen on
	value func(d status.Document, p status.Process) string
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func span(seconds float64) string {
	if seconds <= 0 {
		return "-"
	}
	return status.Span(seconds)
}

func up(at, started time.Time) string {
	if started.IsZero() || started.Unix() <= 0 {
		return "?"
	}
	return status.Span(at.Sub(started).Seconds())
}

func owner(p status.Process) string { return Clean(cmp.Or(p.Owner, p.Session)) }

var (
	processColumn = column{"process", 0, 0,
		func(_ status.Document, p status.Process) string { return owner(p) }}
	holderColumns = []column{
		processColumn,
		{"host", 16, 150, func(_ status.Document, p status.Process) string { return Clean(p.Host) }},
		{"pid", 8, 120, func(_ status.Document, p status.Process) string { return number(p.PID) }},
		{"program", 16, 130, func(_ status.Document, p status.Process) string { return Clean(p.Program) }},
		{"version", 9, 90, func(_ status.Document, p status.Process) string {
			return cmp.Or(Clean(p.Version), "?")
		}},
		{"up", 6, 0, func(d status.Document, p status.Process) string { return up(d.At, p.Started) }},
		{"held", 5, 0, func(_ status.Document, p status.Process) string { return number(p.Permits) }},
		{"due", 5, 0, func(_ status.Document, p status.Process) string { return fmt.Sprintf("%.1f", p.Due) }},
		{"use", 4, 0, func(_ status.Document, p status.Process) string { return number(p.InUse) }},
		{"idle", 5, 0, func(_ status.Document, p status.Process) string { return number(p.Idle) }},
		{"oldest", 7, 0, func(_ status.Document, p status.Process) string { return span(p.OldestUse) }},
		{"seen", 6, 0, func(_ status.Document, p status.Process) string { return span(p.Age) }},
	}
	waiterColumns = []column{
		processColumn,
		{"callers", 8, 0, func(_ status.Document, p status.Process) string { return number(p.Waiting) }},
		{"oldest", 7, 0, func(_ status.Document, p status.Process) string { return span(p.OldestWait) }},
		{"held", 5, 0, func(_ status.Document, p status.Process) string { return number(p.Permits) }},
		{"timeouts", 9, 0, func(_ status.Document, p status.Process) string { return number(int(p.Timeouts)) }},
		{"seen", 6, 0, func(_ status.Document, p status.Process) string { return span(p.Age) }},
	}
)

// table lays out columns for a width: the heading, and one text for each process.
func table(d status.Document, columns []column, list []status.Process, width int) []string {
	shown := make([]column, 0, len(columns))
	left := width
	for _, c := range columns {
		if c.wide <= width {
			shown = append(shown, c)
			if c.width > 0 {
				left -= c.width + 1
			}
		}
	}
	row := func(value func(c column) string) string {
		var b strings.Builder
		for i, c := range shown {
			if i == 0 {
				b.WriteString(Fit(value(c), max(8, left)))
				continue
			}
			b.WriteByte(' ')
			b.WriteString(Right(value(c), c.width))
		}
		return strings.TrimRight(b.String(), " ")
	}
	rows := []string{row(func(c column) string { return c.head })}
	for _, p := range list {
		rows = append(rows, row(func(c column) string { return c.value(d, p) }))
	}
	return rows
}

func holders(d status.Document) (list []status.Process) {
	for _, p := range d.Processes {
		if p.Permits > 0 {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b status.Process) int {
		return cmp.Or(cmp.Compare(b.Permits, a.Permits), cmp.Compare(b.OldestUse, a.OldestUse),
			strings.Compare(a.Owner, b.Owner))
	})
	return list
}

func waiters(d status.Document) (list []status.Process) {
	for _, p := range d.Processes {
		if p.Waiting > 0 || p.Queued > 0 {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b status.Process) int {
		return cmp.Or(cmp.Compare(b.OldestWait, a.OldestWait), cmp.Compare(b.Waiting, a.Waiting),
			strings.Compare(a.Owner, b.Owner))
	})
	return list
}

// Event is an event in words, without its time.
func Event(e status.Event) string {
	text := Clean(e.Kind)
	if who := cmp.Or(e.Owner, e.Session); who != "" {
		text += " " + Clean(who)
	}
	if e.Detail != "" {
		text += ": " + Clean(e.Detail)
	}
	if e.By != "" {
		text += ", by " + Clean(e.By)
	}
	return text
}

// changes are the events, the newest first. Many of one kind within a minute are one line: a deploy
// is.
func changes(d status.Document) (lines []Line) {
	var last status.Event
	n := 0
	flush := func() {
		if n == 0 {
			return
		}
		text := Event(last)
		if n > 1 {
			text = fmt.Sprintf("%d× %s %s and others", n, Clean(last.Kind),
				Clean(cmp.Or(last.Owner, last.Session)))
		}
		ago := "ago"
		style := Plain
		switch last.Kind {
		case "joined", "left", "resumed":
		default:
			style = Look
		}
		lines = append(lines, Line{Right(status.Span(d.At.Sub(last.At).Seconds()), 6) + " " + ago +
			"  " + text, style})
		n = 0
	}
	for _, e := range slices.Backward(d.Events) {
		if n > 0 && e.Kind == last.Kind && e.By == "" && last.By == "" && e.Kind != "capacity" &&
			last.At.Sub(e.At) < time.Minute {
			n++
			continue
		}
		flush()
		last, n = e, 1
	}
	flush()
	return lines
}
