package top

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/screen"
	"github.com/passbuddy/passbuddy/internal/status"
)

// A column of the table: what it shows, and how it sorts; numbers the largest first.
type column struct {
	head  string
	width int // 0: what the others leave
	wide  int // shown from this width of the terminal on
	value func(d *status.Document, p status.Process) string
	less  func(d *status.Document, a, b status.Process) int
}

func figure(head string, width, wide int, n func(p status.Process) int) column {
	return column{head, width, wide,
		func(_ *status.Document, p status.Process) string {
			if n(p) == 0 {
				return "-"
			}
			return fmt.Sprint(n(p))
		},
		func(_ *status.Document, a, b status.Process) int { return cmp.Compare(n(b), n(a)) }}
}

func age(head string, wide int, seconds func(d *status.Document, p status.Process) float64) column {
	return column{head, 6, wide,
		func(d *status.Document, p status.Process) string {
			if seconds(d, p) <= 0 {
				return "-"
			}
			return status.Span(seconds(d, p))
		},
		func(d *status.Document, a, b status.Process) int {
			return cmp.Compare(seconds(d, b), seconds(d, a))
		}}
}

var columns = []column{
	{"process", 0, 0, func(_ *status.Document, p status.Process) string {
		return screen.Clean(cmp.Or(p.Owner, p.Session))
	}, func(_ *status.Document, a, b status.Process) int { return strings.Compare(a.Owner, b.Owner) }},
	figure("held", 5, 0, func(p status.Process) int { return p.Permits }),
	{"due", 5, 0, func(_ *status.Document, p status.Process) string { return fmt.Sprintf("%.1f", p.Due) },
		func(_ *status.Document, a, b status.Process) int { return cmp.Compare(b.Due, a.Due) }},
	figure("use", 4, 0, func(p status.Process) int { return p.InUse }),
	figure("idle", 4, 0, func(p status.Process) int { return p.Idle }),
	figure("wait", 5, 0, func(p status.Process) int { return p.Waiting }),
	age("oldest", 0, func(_ *status.Document, p status.Process) float64 { return p.OldestWait }),
	age("in use", 0, func(_ *status.Document, p status.Process) float64 { return p.OldestUse }),
	figure("timeouts", 8, 90, func(p status.Process) int { return int(p.Timeouts) }),
	age("up", 100, func(d *status.Document, p status.Process) float64 {
		if p.Started.Unix() <= 0 {
			return 0
		}
		return d.At.Sub(p.Started).Seconds()
	}),
	{"version", 9, 110, func(_ *status.Document, p status.Process) string {
		return screen.Clean(cmp.Or(p.Version, "?"))
	}, func(_ *status.Document, a, b status.Process) int { return strings.Compare(a.Version, b.Version) }},
	figure("capacity", 8, 120, func(p status.Process) int { return p.Capacity }),
	age("seen", 80, func(_ *status.Document, p status.Process) float64 { return p.Age }),
}

// sortedFirst is the column that is sorted by in the beginning: held.
const sortedFirst = 1

// shown are the columns that a terminal has room for.
func shown(width int) (list []column) {
	for _, c := range columns {
		if c.wide <= width {
			list = append(list, c)
		}
	}
	return list
}

func (m Model) sortColumn() column {
	list := shown(m.width)
	return list[(m.sort+sortedFirst)%len(list)]
}

// rows are the processes that pass the filter, in order.
func (m Model) rows() []status.Process {
	if m.document == nil {
		return nil
	}
	var list []status.Process
	for _, p := range m.document.Processes {
		if m.passes(p) {
			list = append(list, p)
		}
	}
	by := m.sortColumn()
	slices.SortStableFunc(list, func(a, b status.Process) int {
		order := by.less(m.document, a, b)
		if m.reverse {
			order = -order
		}
		return cmp.Or(order, strings.Compare(a.Owner, b.Owner), strings.Compare(a.Session, b.Session))
	})
	return list
}

// passes reports whether a process has all words of the filter in what is known of it by name.
func (m Model) passes(p status.Process) bool {
	all := strings.ToLower(strings.Join([]string{p.Owner, p.Host, p.Program, p.Version, p.Session,
		fmt.Sprint(p.PID)}, " "))
	for _, pool := range p.Pools {
		all += " " + strings.ToLower(pool.Name)
	}
	for word := range strings.FieldsSeq(strings.ToLower(m.filter)) {
		if !strings.Contains(all, word) {
			return false
		}
	}
	return true
}

// current is the selected process, if it is there.
func (m Model) current() (at int, p status.Process, ok bool) {
	rows := m.rows()
	for i, p := range rows {
		if p.Session == m.selected {
			return i, p, true
		}
	}
	if len(rows) > 0 {
		return 0, rows[0], true
	}
	return 0, p, false
}

// move selects another row.
func (m *Model) move(by int) {
	rows := m.rows()
	if len(rows) == 0 {
		return
	}
	at, _, _ := m.current()
	m.selected = rows[min(max(at+by, 0), len(rows)-1)].Session
}
