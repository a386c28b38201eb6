package top

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

var night = time.Date(2026, 11, 27, 3, 12, 0, 0, time.UTC)

func fleet(after time.Duration) status.Document {
	d := status.Document{
		Semaphore: "orders", Prefix: "passbuddy", At: night.Add(after),
		Capacity: status.Capacity{InForce: 40, Declared: []status.Declared{{Capacity: 40, Sessions: 30}}},
	}
	for i := range 30 {
		p := status.Process{Session: fmt.Sprintf("s%02d", i), Owner: fmt.Sprintf("web-%02d", i),
			Program: "api", PID: 100 + i, Started: night.Add(-time.Hour), Capacity: 40, TTL: 5, Age: 1,
			Permits: 1 + i%3, InUse: 1, Waiting: i % 2, OldestWait: float64(i%2) / 10,
			Due: 1.3}
		d.Held += p.Permits
		d.Callers += p.Waiting
		d.Processes = append(d.Processes, p)
	}
	return d
}

// actor records what it is told to do.
type actor struct{ done []string }

func (a *actor) SetCapacity(_ context.Context, n int) error {
	a.done = append(a.done, fmt.Sprint("capacity ", n))
	return nil
}
func (a *actor) Pause(_ context.Context, o semaphore.PauseOptions) error {
	a.done = append(a.done, fmt.Sprintf("pause drain=%v timeout=%v", o.Drain, o.Timeout))
	return nil
}
func (a *actor) Resume(context.Context) error {
	a.done = append(a.done, "resume")
	return errors.New("it is \x1b[31mlost")
}
func (a *actor) Evict(_ context.Context, session string, o semaphore.EvictOptions) error {
	a.done = append(a.done, fmt.Sprintf("evict %s force=%v", session, o.Force))
	return nil
}

// A terminal drives a model as bubbletea does, and runs the commands of verbs.
type terminal struct {
	t     *testing.T
	model Model
	actor *actor
}

func newTerminal(t *testing.T) *terminal {
	a := &actor{}
	m := New(t.Context(), nil, a, 2*time.Second)
	term := &terminal{t, m, a}
	term.send(tea.WindowSizeMsg{Width: 80, Height: 24})
	term.send(looked{document: fleet(0)})
	return term
}

func (term *terminal) send(msg tea.Msg) tea.Cmd {
	model, cmd := term.model.Update(msg)
	term.model = model.(Model)
	return cmd
}

var named = map[string]rune{"esc": tea.KeyEscape, "enter": tea.KeyEnter, "up": tea.KeyUp,
	"down": tea.KeyDown, "left": tea.KeyLeft, "right": tea.KeyRight, "backspace": tea.KeyBackspace,
	"pgdown": tea.KeyPgDown, "end": tea.KeyEnd}

// press presses keys, and runs what they lead to but for looks and ticks.
func (term *terminal) press(keys ...string) {
	for _, key := range keys {
		msg := tea.KeyPressMsg{Code: named[key]}
		if msg.Code == 0 {
			msg = tea.KeyPressMsg{Code: []rune(key)[0], Text: key}
		}
		if cmd := term.send(msg); cmd != nil {
			term.send(cmd())
		}
	}
}

func (term *terminal) text() string {
	var lines []string
	for _, line := range term.model.Lines() {
		lines = append(lines, line.Text)
	}
	return strings.Join(lines, "\n")
}

func (term *terminal) shows(want ...string) {
	term.t.Helper()
	for _, s := range want {
		if !strings.Contains(term.text(), s) {
			term.t.Errorf("%q is not shown:\n%s", s, term.text())
		}
	}
}

func (term *terminal) did(want ...string) {
	term.t.Helper()
	if got := strings.Join(term.actor.done, "; "); got != strings.Join(want, "; ") {
		term.t.Errorf("did %q, want %q", got, want)
	}
}

// The screen fits into a terminal of any size.
func TestFits(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {40, 8}, {200, 60}, {120, 24}, {1, 1}} {
		term := newTerminal(t)
		term.send(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		for range 50 {
			term.send(looked{document: fleet(time.Second)})
		}
		lines := strings.Split(term.text(), "\n")
		if len(lines) > max(size[1], 8) {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, line := range lines {
			if n := ansi.StringWidth(line); n > max(size[0], 40) {
				t.Errorf("%v: %d wide: %q", size, n, line)
			}
		}
	}
}

func TestSortAndFlip(t *testing.T) {
	term := newTerminal(t)
	term.shows("HELD")
	if rows := term.model.rows(); rows[0].Permits != 3 {
		t.Errorf("%+v", rows[0])
	}
	term.press("left")
	term.shows("PROCESS")
	term.press("<")
	if rows := term.model.rows(); rows[0].Owner != "web-29" {
		t.Errorf("%+v", rows[0])
	}
	for range columns { // all the way round
		term.press("right")
		term.text()
	}
}

func TestFilter(t *testing.T) {
	term := newTerminal(t)
	term.press("/", "w", "e", "b", "-", "0", "x", "backspace", "7")
	term.shows("/web-07_")
	term.press("q", "backspace") // a letter, not a verb
	term.press("enter")
	if rows := term.model.rows(); len(rows) != 1 || rows[0].Owner != "web-07" {
		t.Errorf("%+v", rows)
	}
	term.shows("1 of 30")
	term.press("esc")
	if len(term.model.rows()) != 30 {
		t.Error("the filter is still there")
	}
}

func TestSpaceStopsLooking(t *testing.T) {
	term := newTerminal(t)
	term.press(" ")
	term.shows("stopped")
	term.send(due{})
	if term.model.asking {
		t.Error("it looks")
	}
	term.press(" ")
	term.send(due{})
	if !term.model.asking {
		t.Error("it does not look")
	}
}

func TestSelectionStaysWithItsProcess(t *testing.T) {
	term := newTerminal(t)
	term.press("down", "down", "j")
	before := term.model.selected
	d := fleet(time.Second)
	d.Processes[0].Permits = 99 // another order
	term.send(looked{document: d})
	if term.model.selected != before {
		t.Error("another process is selected")
	}
	term.press("end")
	at, _, _ := term.model.current()
	if at != 29 {
		t.Errorf("row %d", at)
	}
	term.press("pgdown", "up")
	if at, _, _ = term.model.current(); at != 28 {
		t.Errorf("row %d", at)
	}
}

// Verbs are in upper case, say what they will do, and do nothing without a y.
func TestVerbsAsk(t *testing.T) {
	term := newTerminal(t)
	term.press("e", "p", "d", "r", "c", "f") // lower case
	term.did()
	term.press("E")
	_, p, _ := term.model.current()
	term.shows("Recall the 3 permits of "+p.Owner, "[y/N]")
	term.press("n")
	term.did()
	term.shows("nothing was changed")
	term.press("E", "enter")
	term.did()
	term.press("E", "E")
	term.did()
	term.press("E", "y")
	term.did("evict " + p.Session + " force=false")
	term.shows("done")
	term.actor.done = nil
	term.press("F", "y", "P", "y", "D", "y")
	term.did("evict "+p.Session+" force=true", "pause drain=false timeout=0s",
		"pause drain=true timeout=30s")
}

func TestResumeOnlyWhatIsPaused(t *testing.T) {
	term := newTerminal(t)
	term.press("R", "y")
	term.did()
	d := fleet(0)
	d.Pause = &status.Pause{By: "ann@desk", Since: night}
	term.send(looked{document: d})
	term.press("R")
	term.shows("End the pause of ann@desk?")
	term.press("y")
	term.did("resume")
	term.shows("resume: it is [31mlost") // no escape sequence
	if strings.Contains(term.text(), "\x1b") {
		t.Error("an escape sequence is shown")
	}
}

func TestCapacityAsksTwice(t *testing.T) {
	term := newTerminal(t)
	term.press("C", "1", "x", "2", "backspace", "5")
	term.shows("15_")
	term.press("enter")
	term.shows("Set the capacity from 40 to 15 for 30 processes?")
	term.did()
	term.press("y")
	term.did("capacity 15")
	term.press("C", "enter")
	term.shows("nothing was changed")
	term.press("C", "0", "enter", "y")
	term.did("capacity 15", "capacity 0")
	term.press("C", "esc")
	term.did("capacity 15", "capacity 0")
}

// A look that fails keeps the last figures, and nothing can be changed meanwhile.
func TestErrorsKeepTheLastFigures(t *testing.T) {
	term := newTerminal(t)
	term.send(looked{err: errors.New("no route to host"), document: status.Document{}})
	term.shows("no route to host. The figures", "web-02")
	term.press("E", "y")
	term.did()
	term.send(looked{document: fleet(time.Second)})
	if strings.Contains(term.text(), "no route") {
		t.Error("the error is still there")
	}
}

func TestHelpNamesEveryVerb(t *testing.T) {
	term := newTerminal(t)
	term.press("?")
	term.shows("E ", "F ", "P  D", "R ", "C ", "filter")
	term.press("E")
	term.did()
	if term.model.help || term.model.ask != nil {
		t.Error("a key that leaves the help did more")
	}
}

func TestQuit(t *testing.T) {
	for _, key := range []tea.KeyPressMsg{{Code: 'q', Text: "q"}, {Code: 'c', Mod: tea.ModCtrl}} {
		term := newTerminal(t)
		cmd := term.send(key)
		if cmd == nil {
			t.Fatalf("%s does not quit", key)
		}
		if _, quits := cmd().(tea.QuitMsg); !quits {
			t.Errorf("%s does not quit", key)
		}
	}
}

// The timeouts that are shown are those of the last minute.
func TestLooksOfTheLastMinute(t *testing.T) {
	term := newTerminal(t)
	for i := range 100 {
		term.send(looked{document: fleet(time.Duration(i) * 2 * time.Second)})
	}
	first, last := term.model.looks[0].At, term.model.document.At
	if span := last.Sub(first); span < 58*time.Second || span > 62*time.Second {
		t.Errorf("%v", span)
	}
	term.send(looked{document: fleet(time.Hour)})
	if len(term.model.looks) != 1 {
		t.Errorf("%d looks from before a stop of an hour", len(term.model.looks))
	}
}

func TestSparkline(t *testing.T) {
	for _, c := range []struct {
		values []float64
		most   float64
		n      int
		want   string
	}{
		{nil, 10, 3, "   "},
		{[]float64{0, 1, 5, 10}, 10, 4, " ▁▅█"},
		{[]float64{1, 2, 3}, 0, 2, "▆█"},
		{[]float64{20}, 10, 2, " █"},
		{[]float64{0.01}, 100, 1, "▁"},
	} {
		if got := sparkline(c.values, c.most, c.n); got != c.want {
			t.Errorf("%v of %v: %q, want %q", c.values, c.most, got, c.want)
		}
	}
}
