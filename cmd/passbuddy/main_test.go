package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/operate"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
)

func TestCommandLines(t *testing.T) {
	t.Setenv(target.RedisEnv, "redis://user:secret@127.0.0.1:1")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"bogus"}, exit.Usage, "unknown command"},
		{[]string{"status", "--bogus"}, exit.Usage, "--help"},
		{[]string{"status", "extra"}, exit.Usage, "extra"},
		{[]string{"evict"}, exit.Usage, "takes one SESSION"},
		{[]string{"evict", "a", "b"}, exit.Usage, "but got 2"},
		{[]string{"run"}, exit.Usage, "which command?"},
		{[]string{"run", "-n", "-1", "--", "true"}, exit.Usage, "-n is -1"},
		{[]string{"run", "--name", "", "--", "true"}, exit.Usage, "--name is empty"},
		{[]string{"run", "--name", "a\nb", "--", "true"}, exit.Usage, "--name, or"},
		{[]string{"run", "--", "true"}, exit.Unavailable, "passbuddy doctor"},
		{[]string{"proxy", "--to", "x:1", "--min", "-1"}, exit.Usage, "--min is -1"},
		{[]string{"proxy", "--to", "x:1", "--min", "9", "--capacity", "5"}, exit.Usage, "--min is 9"},
		{[]string{"proxy", "--to", "x:1", "--max", "1", "--min", "2"}, exit.Usage, "--max is 1"},
		{[]string{"proxy", "--to", "x:1", "--weight", "101"}, exit.Usage, "--weight is 101"},
		{[]string{"proxy", "--to", "x:1", "--listen", "127.0.0.1:0"}, exit.Unavailable,
			"passbuddy doctor"},
		{[]string{"serve", "--allow-control"}, exit.Usage, "needs a token"},
		{[]string{"serve", "--token-file", "x"}, exit.Usage, "--allow-control"},
		{[]string{"serve", "--listen", "127.0.0.1:x"}, exit.Failed, "choose another --listen"},
		{[]string{"demo", "-processes", "0"}, exit.Usage, "-processes"},
		{[]string{"capacity", "x"}, exit.Usage, "from 1"},
		{[]string{"events"}, exit.Unavailable, "refused"},
		{[]string{"top"}, exit.Usage, "terminal"},
		{[]string{"proxy"}, exit.Usage, ""},
	} {
		var complaint bytes.Buffer
		code := execute(t.Context(), operate.New(), c.args, &complaint)
		if code != c.code || !strings.Contains(complaint.String(), c.says) {
			t.Errorf("%q: %d, want %d: %s", c.args, code, c.code, &complaint)
		}
		if strings.Contains(complaint.String(), "secret") || strings.Contains(complaint.String(), "goroutine") {
			t.Errorf("%q: %s", c.args, &complaint)
		}
	}
}

func TestHelp(t *testing.T) {
	for args, says := range map[string]string{
		"help":                              "passbuddy status --postgres",
		"":                                  "To act:",
		"help exit-codes":                   "  75   run: no permit",
		"status --help":                     "--check",
		"version":                           "passbuddy ",
		"--version":                         "passbuddy ",
		"completion bash":                   "bash completion",
		"completion zsh":                    "compdef",
		"help pause":                        "--drain",
		"help exit-codes --json":            "Exit codes:",
		"completion fish --no-descriptions": "fish completion",
	} {
		root := newRoot(operate.New())
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(strings.Fields(args))
		if err := root.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), says) {
			t.Errorf("%q: %v: %s", args, err, &out)
		}
	}
}

// Every command is in a group of the help, but for those of cobra, version and the topics.
func TestEveryCommandHasAGroup(t *testing.T) {
	for _, cmd := range newRoot(operate.New()).Commands() {
		switch cmd.Name() {
		case "version", "exit-codes", "help", "completion":
			continue
		}
		if cmd.GroupID == "" || cmd.Short == "" {
			t.Errorf("%s has no group, or no description", cmd.Name())
		}
	}
}
