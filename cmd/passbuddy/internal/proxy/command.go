package proxy

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/membership"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
)

// NewCommand returns `passbuddy proxy` for the semaphore of t, whose flags the root command has.
// The context of the command ends at the signal that stops it. Its error carries the exit code: see
// package exit.
func NewCommand(t *target.Target) *cobra.Command {
	var o Options
	cmd := &cobra.Command{
		Use:   "proxy --to host:port",
		Short: "Count the connections of programs in any language, by a TCP proxy before Postgres",
		Long: `Accept connections of Postgres clients, and pass each on to Postgres once it has a permit.

TLS and passwords pass through unread, from the client to Postgres. The proxy keeps no
idle connections, and shares none: each client has a backend of its own. A client that
finds no permit waits; after --wait it gets the error 53300, too_many_connections.

Exit codes: 0 stopped by a signal, and all connections ended; 1 some had to be cut, or
it failed; 2 the flags are wrong, or nobody has said what the capacity is; 69 Redis
cannot be asked.`,
		Example: `  passbuddy proxy --to postgres:5432
  passbuddy proxy --listen 0.0.0.0:6432 --to postgres:5432 --capacity 60 --max 20 --json`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := t.Resolve(os.Getenv); err != nil {
				return exit.With(exit.Usage, err)
			}
			if err := membership.Resolve(&o.Capacity, os.Getenv); err != nil {
				return exit.With(exit.Usage, err)
			}
			o.Target = *t
			code, err := Run(cmd.Context(), o, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
			if code == exit.Unavailable && err != nil {
				err = t.Explain(err)
			}
			return exit.With(code, err)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Listen, "listen", defaultListen,
		"`address` to listen on; whoever reaches it reaches Postgres, as from this host")
	flags.StringVar(&o.To, "to", "", "`address` of Postgres")
	flags.DurationVar(&o.Wait, "wait", defaultWait, "longest `time` that a client waits")
	membership.AddFlag(flags, &o.Capacity, "`capacity` of the fleet, as its processes declare it; "+
		"the smallest is in force (default $"+membership.CapacityEnv+
		", or what the fleet declares at the start)")
	flags.IntVar(&o.Min, "min", 0, "`number` of permits that the fleet keeps for this proxy")
	flags.IntVar(&o.Max, "max", 0, "largest `number` of permits that it may hold (default any)")
	flags.IntVar(&o.Weight, "weight", 1, "its part under load, beside the fleet's pools")
	flags.IntVar(&o.MaxClients, "max-clients", 0, fmt.Sprintf("largest `number` of clients, those "+
		"that wait included (default %d, or what ulimit -n allows)", defaultMaxClients))
	flags.DurationVar(&o.StopTimeout, "stop-timeout", defaultStopTimeout,
		"longest `time` for connections to end when the proxy is stopped")
	flags.BoolVar(&o.JSON, "json", false, "write log lines as JSON")
	flags.BoolVar(&o.Verbose, "verbose", false, "log each connection")
	return cmd
}
