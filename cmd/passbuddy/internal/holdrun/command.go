package holdrun

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/membership"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/semaphore"
)

// NewCommand returns `passbuddy run` for the semaphore of t, whose flags the root command has. Its
// error carries the exit code: see package exit. main must also route [GuardCommand] to [RunGuard],
// before it parses any flag.
func NewCommand(t *target.Target) *cobra.Command {
	var o Options
	cmd := &cobra.Command{
		Use:   "run [flags] -- command [arguments]",
		Short: "Hold permits while a command runs: psql, a migration, a dump, any language",
		Long: `Wait for permits of the fleet, run the command, and give them back when it has ended.

A permit stands for one connection: give -n the most that the command opens.

Exit codes: the command's own, 128+n if signal n ended it; 2 the flags are wrong, or
nobody has said what the capacity is; 69 Redis cannot be asked; 74 the lease was lost,
and the command was ended for that; 75 no permit within --wait, nothing was run; 126 the
command cannot be executed; 127 there is no such command.`,
		Example: `  passbuddy run -- psql "$DATABASE_URL"
  passbuddy run -n 5 --wait 10m -- pg_dump -j 4 -Fd -f dump "$DATABASE_URL"
  passbuddy run --wait 0 -- make migrate || test $? = 75`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errNoCommand
			}
			return nil
		},
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.Resolve(os.Getenv); err != nil {
				return exit.With(exit.Usage, err)
			}
			if err := membership.Resolve(&o.Capacity, os.Getenv); err != nil {
				return exit.With(exit.Usage, err)
			}
			o.Target, o.Command = *t, args
			code, err := Run(cmd.Context(), o, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
			if code == exit.Unavailable && err != nil {
				err = t.Explain(err)
			}
			return exit.With(code, err)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // flags behind the command are the command's
	flags.IntVarP(&o.N, "permits", "n", 1, "`number` of permits, granted together")
	flags.DurationVar(&o.Wait, "wait", defaultWait,
		"longest `time` to wait for the permits; 0 tries once")
	membership.AddFlag(flags, &o.Capacity, "`capacity` to declare meanwhile, as the fleet's "+
		"processes do; the smallest is in force (default $"+membership.CapacityEnv+
		", or none: the fleet's holds)")
	flags.DurationVar(&o.TTL, "ttl", semaphore.DefaultTTL, "`length` of the leases")
	flags.DurationVar(&o.Grace, "grace", 0,
		"`time` from SIGTERM to SIGKILL when the command must end (default a tenth of --ttl)")
	flags.DurationVar(&o.Linger, "linger", defaultLinger,
		"`time` from the command's end to the release, for its backends to end")
	return cmd
}
