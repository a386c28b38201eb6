package screen

import (
	"fmt"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/passbuddy/passbuddy/internal/status"
)

// labels are as wide as the widest answer's name.
const labels = 10

// Status is the screen that answers the questions of the first minute, in their order: is it us, why
// this capacity, who holds, who waits, what changed, what to do. It fits into width and height, if
// height is not 0: then the answers stay, and lists are cut.
func Status(d status.Document, width, height int) []Line {
	width = max(width, 40)
	head := header(d, width)
	us := labelled("is it us?", isItUs(d), width)
	if d.RedisError != "" {
		advice := findings(d, width, height-len(head)-len(us))
		return cutAll(concat(head, us, advice), width)
	}
	capacity := labelled("capacity", whyCapacity(d), width)
	holding := labelled("held", []Line{whoHolds(d)}, width)
	waiting := labelled("waiting", []Line{whoWaits(d)}, width)
	holderRows := rows(table(d, holderColumns, holders(d), width-2))
	waiterRows := rows(table(d, waiterColumns, waiters(d), width-2))
	changed := changes(d)
	if len(changed) == 0 {
		changed = []Line{{"nothing that is still in the log", Dim}}
	}
	fixed := len(head) + len(us) + len(capacity) + len(holding) + len(waiting) + 1
	advice := findings(d, width, max(5, (height-fixed)*2/3))
	if height == 0 {
		advice = findings(d, width, 0)
	}
	if height > 0 {
		left := height - fixed - rowsOf(advice, width)
		sizes := share(left, []int{len(holderRows), len(waiterRows), len(changed)})
		holderRows = first(holderRows, sizes[0], "processes hold permits")
		waiterRows = first(waiterRows, sizes[1], "processes wait")
		changed = first(changed, sizes[2], "")
	}
	out := concat(head, us, capacity, holding, holderRows, waiting, waiterRows,
		[]Line{{"changed", Head}}, changed, advice)
	return cutAll(out, width)
}

// Answers are the answers of the screen without its lists, and without what changed.
func Answers(d status.Document, width int) []Line {
	if d.RedisError != "" {
		return cutAll(concat(header(d, width), labelled("is it us?", isItUs(d), width)), width)
	}
	return cutAll(concat(header(d, width), labelled("is it us?", isItUs(d), width),
		labelled("capacity", whyCapacity(d), width), labelled("held", []Line{whoHolds(d)}, width),
		labelled("waiting", []Line{whoWaits(d)}, width)), width)
}

func header(d status.Document, width int) []Line {
	name := Clean(d.Prefix + "-" + d.Semaphore)
	worst, style := "all is well", Good
	if d.Empty() && d.RedisError == "" {
		worst, style = "nobody has used this name yet", Look
	}
	n := 0
	for _, f := range d.Findings {
		if f.Severity != status.Info {
			n++
		}
	}
	switch d.Worst() {
	case status.Critical:
		worst, style = fmt.Sprintf("✖ trouble: %s", status.Count(n, "finding")), Bad
	case status.Warning:
		worst, style = fmt.Sprintf("▲ %s", status.Count(n, "finding")), Look
	}
	text := fmt.Sprintf("%s  %s", name, worst)
	if !d.At.IsZero() && d.RedisError == "" {
		at := d.At.UTC().Format("15:04:05 UTC")
		text = Fit(text, width-len(at)-1) + " " + at
	}
	return []Line{{text, style}}
}

// labelled puts a label before the first of some lines, and sets the others below it.
// Each takes two lines of the width at most.
func labelled(label string, lines []Line, width int) (out []Line) {
	for _, l := range lines {
		for _, text := range Wrap(l.Text, width-labels, 2) {
			out = append(out, Line{Fit(label, labels) + text, l.Style})
			label = ""
		}
	}
	if len(out) > 0 && out[0].Style == Plain {
		out[0].Style = Head
	}
	return out
}

func rows(texts []string) []Line {
	if len(texts) == 1 {
		return nil // a heading of nothing
	}
	lines := make([]Line, len(texts))
	for i, text := range texts {
		lines[i] = Line{"  " + text, Plain}
	}
	lines[0].Style = Dim
	return lines
}

// first cuts a list to n lines. The last of them then says how many are not shown.
func first(lines []Line, n int, what string) []Line {
	if len(lines) <= n {
		return lines
	}
	if n <= 1 {
		if what != "" {
			return nil // a heading alone, or a count alone, helps nobody
		}
		return lines[:max(0, n)]
	}
	cut := append([]Line(nil), lines[:n]...)
	if what != "" && n > 2 {
		cut[n-1] = Line{fmt.Sprintf("  ... %d more %s", len(lines)-n+1, what), Dim}
	}
	return cut
}

// share divides lines among lists, evenly as far as they want them.
func share(left int, want []int) []int {
	got := make([]int, len(want))
	for left > 0 {
		given := false
		for i := range want {
			if left > 0 && got[i] < want[i] {
				got[i]++
				left--
				given = true
			}
		}
		if !given {
			break
		}
	}
	return got
}

// findings say what is wrong and what to do, within some lines; 0 is any number. Those that are only
// worth to know are left out where there is no room for them.
func findings(d status.Document, width, most int) (lines []Line) {
	lines = append(lines, Line{"what to do", Head})
	var list []status.Finding
	for _, f := range d.Findings {
		if f.Severity != status.Info || most == 0 {
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		lines[0] = Line{Fit("what to do", labels+1) + "nothing", Head}
		return lines
	}
	for i, f := range list {
		long := 0
		if most > 0 {
			if long = 3; i > 0 {
				long = 1
			}
		}
		one := Finding(f, width, long)
		if most > 0 && rowsOf(lines, width)+rowsOf(one, width) > most && i > 0 {
			lines[0].Text += fmt.Sprintf(" (%d more: passbuddy doctor)", len(list)-i)
			return lines
		}
		lines = append(lines, one...)
	}
	return lines
}

// Finding is one finding: what, then the effect of a command, then the command. Its text takes at
// most some lines; 0 is any number. The command is never cut: see cutAll.
func Finding(f status.Finding, width, long int) (lines []Line) {
	sign, style := "▲", Look
	switch f.Severity {
	case status.Critical:
		sign, style = "✖", Bad
	case status.Info:
		sign, style = "·", Dim
	}
	for i, text := range Wrap(Clean(f.Text), width-2, long) {
		if i > 0 {
			sign = " "
		}
		lines = append(lines, Line{sign + " " + text, style})
	}
	short := long
	if short > 2 {
		short = 2
	}
	if f.Effect != "" {
		for _, text := range Wrap(Clean(f.Effect), width-2, short) {
			lines = append(lines, Line{"  " + text, Plain})
		}
	}
	if f.Command != "" {
		lines = append(lines, Line{"  $ " + Clean(f.Command), Command})
	}
	return lines
}

// rowsOf is how many rows of a terminal the lines take: commands are not cut, and can take several.
func rowsOf(lines []Line, width int) (n int) {
	for _, l := range lines {
		n++
		if l.Style == Command {
			n += max(0, ansi.StringWidth(l.Text)-1) / width
		}
	}
	return n
}

// cutAll cuts the lines to the width, but for commands: those are there to be copied.
func cutAll(lines []Line, width int) []Line {
	for i, l := range lines {
		if l.Style != Command {
			lines[i].Text = strings.TrimRight(Cut(l.Text, width), " ")
		}
	}
	return lines
}

func concat(lists ...[]Line) (all []Line) {
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}
