package main

import (
	"context"
	"errors"
	"flag"
	"io"

	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
)

// legacy is a command that reads its own flags, until it is done or interrupted. They go by package
// flag, with one dash or two.
func legacy[Options any](name, short string, parse func([]string, io.Writer) (Options, error),
	run func(context.Context, Options, io.Writer, io.Writer) error,
) *cobra.Command {
	return &cobra.Command{
		Use:                name,
		Short:              short,
		DisableFlagParsing: true,
		SilenceUsage:       true,
		SilenceErrors:      true,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts, err := parse(args, cmd.ErrOrStderr())
			switch {
			case errors.Is(err, flag.ErrHelp):
				return nil
			case err != nil:
				return exit.With(exit.Usage, err)
			}
			err = run(cmd.Context(), opts, cmd.OutOrStdout(), cmd.ErrOrStderr())
			if cmd.Context().Err() != nil {
				return exit.With(exit.Interrupted, errors.New("interrupted; its processes have ended"))
			}
			if err != nil {
				return exit.With(exit.Failed, err)
			}
			return nil
		},
	}
}
