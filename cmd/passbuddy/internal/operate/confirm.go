package operate

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/internal/status"
)

// confirm says what a verb will do, and asks. Without a terminal to ask at, it refuses: --yes is
// for scripts.
func (t *Tool) confirm(cmd *cobra.Command, effect string) error {
	out := cmd.ErrOrStderr()
	say(out, "%s", effect)
	if t.Yes {
		return nil
	}
	if !t.OnTerminal(cmd.InOrStdin()) || !t.OnTerminal(out) {
		return exit.With(exit.Declined, errors.New("nothing was changed: there is no terminal to ask "+
			"at, so add --yes"))
	}
	fmt.Fprint(out, "Do it? [y/N] ")
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if ctxErr := cmd.Context().Err(); ctxErr != nil {
		return ctxErr
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	if err != nil {
		fmt.Fprintln(out)
	}
	return exit.With(exit.Declined, errors.New("nothing was changed"))
}

// A verb prints a result with --json.
type result struct {
	Version int    `json:"version"`
	Done    string `json:"done"`
	Effect  string `json:"effect"`
}

// done says what a verb has done.
func (t *Tool) done(cmd *cobra.Command, verb, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if t.JSON {
		return printJSON(cmd.OutOrStdout(), result{status.Version, verb, text})
	}
	say(cmd.OutOrStdout(), "%s", text)
	return nil
}
