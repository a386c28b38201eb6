package screen_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/charmbracelet/x/ansi"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/screen"
	"github.com/passbuddy/passbuddy/internal/status"
)

var update = flag.Bool("update", false, "write testdata instead of comparing with it")

// Each incident's transcript can be read in testdata. The first screen of an 80x24 terminal names
// the culprit and the command.
func TestFirstScreenNamesTheCulprit(t *testing.T) {
	for name, names := range map[string][]string{
		"quiet":    {"all is well"},
		"others":   {"rails-reporting", "room for 31 of our 40", "passbuddy capacity 31 --name orders"},
		"stuck":    {"batch-export-0 (export, pid 4123 on worker-3)", "14m", "passbuddy evict 0198f3c2-batch --force"},
		"deploy":   {"12 processes (web-8e21aa-...)", "12 processes (web-7d4b9c-...)", "passbuddy capacity 80"},
		"mismatch": {"cron-mailer-1 (mailer, pid 911 on cron-2)", "passbuddy capacity 40 --name orders"},
		"stalled":  {"Redis did not answer 12 sessions", "passbuddy doctor --name orders"},
		"gone":     {"Redis cannot be asked", "passbuddy doctor --name orders"},
	} {
		t.Run(name, func(t *testing.T) {
			d := incidents[name]()
			d.Findings = status.Diagnose(d)
			text := screen.String(screen.Status(d, 80, 24), false)
			path := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if text != string(want) {
				t.Errorf("not %s (-update writes it):\n%s", path, text)
			}
			for _, s := range names {
				if !strings.Contains(joined(text), s) {
					t.Errorf("%q is not on the first screen:\n%s", s, text)
				}
			}
			rows := 0
			for line := range strings.Lines(text) {
				rows += 1 + max(0, ansi.StringWidth(strings.TrimSuffix(line, "\n"))-1)/80
			}
			if rows > 24 {
				t.Errorf("%d rows:\n%s", rows, text)
			}
		})
	}
}

// joined is a text whose lines, broken to fit, are one.
func joined(text string) string { return strings.Join(strings.Fields(text), " ") }

// The answers come in the order in which the first minute asks for them.
func TestAnswersInOrder(t *testing.T) {
	for name, incident := range incidents {
		if name == "gone" {
			continue
		}
		d := incident()
		d.Findings = status.Diagnose(d)
		text := screen.String(screen.Status(d, 80, 24), false)
		at := 0
		for _, label := range []string{"\nis it us?", "\ncapacity", "\nheld", "\nwaiting", "\nchanged",
			"\nwhat to do"} {
			i := strings.Index(text[at:], label)
			if i < 0 {
				t.Fatalf("%s: no %q in its place:\n%s", name, label, text)
			}
			at += i
		}
	}
}

// Names come from other processes. None can write an escape sequence to the terminal, whatever the
// size of the screen.
func TestHostileTextStaysText(t *testing.T) {
	const hostile = "\x1b]0;owned\x07\x1b[2J\u202egnp\r\nweb\u009b31m\u200b"
	d := incidents["stuck"]()
	for i := range d.Processes {
		p := &d.Processes[i]
		p.Owner, p.Host, p.Program, p.Version = hostile, hostile, hostile, hostile
		p.Session += hostile
	}
	d.Capacity.SetBy, d.Capacity.Operator = hostile, 40
	d.Pause = &status.Pause{By: hostile, Reason: hostile, Since: night}
	d.Semaphore, d.PostgresError = hostile, hostile
	for i := range d.Events {
		e := &d.Events[i]
		e.Kind, e.Owner, e.By, e.Detail = hostile, hostile, hostile, hostile
	}
	for i := range d.Postgres.Backends {
		g := &d.Postgres.Backends[i]
		g.Application, g.User, g.Address, g.Ours = hostile, hostile, hostile, false
	}
	d.Findings = status.Diagnose(d)
	for _, size := range [][2]int{{80, 24}, {40, 8}, {200, 0}, {10, 1}} {
		for _, line := range screen.Status(d, size[0], size[1]) {
			for _, r := range line.Text {
				if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
					t.Fatalf("%v: %q", size, line.Text)
				}
			}
		}
	}
}

func TestColoursOnlyWhereTheyAreWanted(t *testing.T) {
	lines := []screen.Line{{Text: "x", Style: screen.Bad}, {Text: "y"}}
	if s := screen.String(lines, false); s != "x\ny\n" {
		t.Errorf("%q", s)
	}
	if s := screen.String(lines, true); s != "\x1b[1;31mx\x1b[0m\ny\n" {
		t.Errorf("%q", s)
	}
}

// Without a bound on the height nothing is left out.
func TestAllProcessesWithoutABound(t *testing.T) {
	d := incidents["deploy"]()
	text := screen.String(screen.Status(d, 100, 0), false)
	for _, p := range d.Processes {
		if !strings.Contains(text, p.Owner) {
			t.Errorf("%s is missing", p.Owner)
		}
	}
}
