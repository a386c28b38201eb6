package top

import (
	"context"
	"errors"
	"fmt"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/operate"
	"github.com/passbuddy/passbuddy/internal/status"
)

// NewCommand returns `passbuddy top`.
func NewCommand(t *operate.Tool) *cobra.Command {
	var refresh time.Duration
	cmd := t.Command(cobra.Command{
		Use:   "top",
		Short: "Watch the fleet live; sort, filter, and act on it",
		Long: `Watch the fleet. ? lists the keys. Keys in lower case change nothing; those in upper case
say what they will do, and ask.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		if t.JSON {
			return exit.With(exit.Usage, errors.New("it is for a terminal: use passbuddy status --json"))
		}
		if !t.OnTerminal(cmd.OutOrStdout()) || !t.OnTerminal(cmd.InOrStdin()) {
			return exit.With(exit.Usage, errors.New("it needs a terminal: use passbuddy status"))
		}
		inspector, end, err := t.Inspect()
		if err != nil {
			return err
		}
		defer end()
		source := func(ctx context.Context, before *status.Document) (status.Document, error) {
			return t.Build(ctx, inspector, before)
		}
		model := New(cmd.Context(), source, inspector, refresh)
		program := tea.NewProgram(model, tea.WithContext(cmd.Context()),
			tea.WithInput(cmd.InOrStdin()), tea.WithOutput(cmd.OutOrStdout()),
			tea.WithoutSignalHandler())
		if _, err := program.Run(); err != nil && cmd.Context().Err() == nil {
			return exit.With(exit.Failed, fmt.Errorf("the terminal: %w", err))
		}
		return nil
	})
	cmd.Flags().DurationVar(&refresh, "refresh", 2*time.Second, "`time` between two looks")
	return cmd
}
