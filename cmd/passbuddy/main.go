// Command passbuddy sees and steers fleets: `passbuddy status` shows one, `passbuddy help` lists the
// rest. `passbuddy run` and `passbuddy proxy` have other programs take part in one. `passbuddy demo`
// shows what PassBuddy does, and `passbuddy bench` measures it beside its rivals.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/holdrun"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/operate"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/screen"
)

func main() { os.Exit(run(os.Args[1:])) }

// run routes the processes that this program starts of itself, before any flag is read, and runs the
// command of all others.
func run(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case fleet.WorkerCommand:
			return fleet.RunWorker()
		case holdrun.GuardCommand:
			return holdrun.RunGuard(args[1:])
		case "-version":
			args = []string{"version"}
		}
	}
	redis.SetLogger(silent{}) // commands report what fails themselves
	// SIGINT is `passbuddy run`'s to pass on: it catches its signals itself.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM,
		syscall.SIGHUP)
	defer stop()
	// a second Ctrl-C ends the program without the clean-up that the first one began
	context.AfterFunc(ctx, stop)
	return execute(ctx, operate.New(), args, os.Stderr)
}

// execute runs a command, shows its error, and returns its exit code.
func execute(ctx context.Context, tool *operate.Tool, args []string, stderr io.Writer) int {
	root := newRoot(tool)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exit.OK
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(stderr, "%s: %s\n", cmd.CommandPath(), screen.CleanLines(text))
	}
	if codeOf(err) == exit.Usage {
		fmt.Fprintf(stderr, "`%s --help` lists its flags.\n", cmd.CommandPath())
	}
	return codeOf(err)
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
