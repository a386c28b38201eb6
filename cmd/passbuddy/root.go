package main

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/bench"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/demo"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/holdrun"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/operate"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/proxy"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/top"
)

// Groups of commands, as help lists them.
const (
	looking = "looking"
	acting  = "acting"
	joining = "joining"
	trying  = "trying"
)

var groupOf = map[string]string{
	"status": looking, "top": looking, "list": looking, "events": looking, "doctor": looking,
	"serve": looking, "capacity": acting, "pause": acting, "resume": acting, "evict": acting,
	"run": joining, "proxy": joining, "demo": trying, "bench": trying,
}

func newRoot(tool *operate.Tool) *cobra.Command {
	root := &cobra.Command{
		Use:   "passbuddy",
		Short: "See and steer a fleet whose Postgres connections PassBuddy caps",
		Long: `See and steer a fleet whose Postgres connections PassBuddy caps.

"Too many clients already", or callers that time out? Begin with

  passbuddy status --postgres "$DATABASE_URL"

Flags can be set in the environment: PASSBUDDY_REDIS_URL (or REDIS_URL), PASSBUDDY_NAME,
PASSBUDDY_PREFIX, PASSBUDDY_POSTGRES_URL. passbuddy help exit-codes is for scripts.`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return exit.With(exit.Usage, err)
	})
	tool.AddFlags(root.PersistentFlags())
	root.AddGroup(&cobra.Group{ID: looking, Title: "To look (nothing is changed):"},
		&cobra.Group{ID: acting, Title: "To act:"},
		&cobra.Group{ID: joining, Title: "To have other programs take part:"},
		&cobra.Group{ID: trying, Title: "To try PassBuddy out:"})
	root.AddCommand(tool.Commands()...)
	root.AddCommand(top.NewCommand(tool), serveCommand(tool), holdrun.NewCommand(tool.Target),
		proxy.NewCommand(tool.Target),
		legacy("demo", "Run a fleet of processes on one Postgres, without PassBuddy and with it",
			demo.ParseOptions, demo.Run),
		legacy("bench", "Measure PassBuddy beside other ways to keep a fleet under a cap",
			bench.ParseOptions, bench.Run),
		versionCommand(), exitCodes())
	for _, cmd := range root.Commands() {
		cmd.GroupID = groupOf[cmd.Name()]
	}
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "passbuddy", version())
		},
	}
}

// exitCodes is a topic of help.
func exitCodes() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `Exit codes:

  0    done, or nothing is wrong
  1    it failed: the error says what
  2    the command line or a variable of the environment is wrong
  3    doctor, or status --check, has found something wrong
  4    nothing was changed: the user said no, or --yes was missing without a terminal
  5    a drain or an eviction ended, and permits were still held
  69   Redis cannot be asked
  74   run: the lease was lost, and the command was ended for that
  75   run: no permit within --wait, nothing was run
  126  run: the command cannot be executed
  127  run: there is no such command
  130  interrupted

passbuddy run passes its command's exit code on, and 128+n if signal n ended it.
`,
	}
}

// codeOf is the exit code for an error. Errors of commands that ran carry theirs. All others are
// cobra's: an unknown command, or a wrong number of arguments.
func codeOf(err error) int {
	var coded *exit.Error
	if !errors.As(err, &coded) {
		return exit.Usage
	}
	return coded.Code
}

// version returns the module's version, as `go install ...@version` records it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
