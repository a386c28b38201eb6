package operate

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/semaphore"
)

// docs/STATUS.md names every field that a command prints with --json.
func TestEveryFieldIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/STATUS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, others, found := strings.Cut(string(text), "## The other commands")
	if !found {
		t.Fatal("docs/STATUS.md says nothing of the other commands")
	}
	d := newDesk(t)
	d.acquire(d.join(semaphore.Config{Owner: "web-1", Capacity: 4}))
	row := func(command string) string {
		_, after, found := strings.Cut(others, "\n| "+command)
		if !found {
			t.Fatalf("docs/STATUS.md does not have %s", command)
		}
		line, _, _ := strings.Cut(after, "\n")
		return line
	}
	for command, args := range map[string][]string{
		"`list --json`": {"list"}, "`events --json`": {"events"}, "`capacity --json`": {"capacity"},
		"`doctor --json`": {"doctor"}, "verbs with `--json`": {"capacity", "3", "--yes"},
	} {
		out, complaint, code := d.run(append(args, "--json")...)
		if code != exit.OK {
			t.Errorf("%s: %d: %s", command, code, complaint)
		}
		decoder := json.NewDecoder(strings.NewReader(out)) // of several lines, the first
		var value map[string]any
		if err := decoder.Decode(&value); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		fields := value
		if list, ok := value["semaphores"].([]any); ok {
			for name, v := range list[0].(map[string]any) {
				fields[name] = v
			}
		}
		for name := range fields {
			if !strings.Contains(row(command), "`"+name+"`") {
				t.Errorf("docs/STATUS.md does not have %q of %s", name, command)
			}
		}
	}
}
