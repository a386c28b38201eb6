// Command passbuddy shows what PassBuddy does: `passbuddy demo` runs a fleet of processes on one
// Postgres, first without it and then with it; `passbuddy bench` measures it beside its rivals.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/bench"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/demo"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

const usage = `Usage: passbuddy <command> [flags]

Commands:
  demo      run a fleet of processes on one Postgres, without PassBuddy and with it
  bench     measure PassBuddy beside other ways to keep a fleet under a cap
  version   print the version

passbuddy <command> -h lists the flags of a command.
`

// Exit statuses, by the shell's conventions.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	switch args[0] {
	case "demo":
		return runCommand("demo", args[1:], demo.ParseOptions, demo.Run)
	case "bench":
		return runCommand("bench", args[1:], bench.ParseOptions, bench.Run)
	case fleet.WorkerCommand:
		return fleet.RunWorker()
	case "version", "-version", "--version":
		fmt.Println("passbuddy", version())
		return exitOK
	case "help", "-h", "-help", "--help":
		fmt.Print(usage)
		return exitOK
	}
	fmt.Fprintf(os.Stderr, "passbuddy: there is no command %q\n\n%s", args[0], usage)
	return exitUsage
}

// runCommand runs a command that has flags, until it is done or interrupted.
func runCommand[Options any](name string, args []string,
	parse func([]string, io.Writer) (Options, error), run func(context.Context, Options, io.Writer,
		io.Writer) error,
) int {
	opts, err := parse(args, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(os.Stderr, "passbuddy %s: %v\n", name, err)
		return exitUsage
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM,
		syscall.SIGHUP)
	defer stop()
	// a second Ctrl-C ends the program without the clean-up that the first one began
	context.AfterFunc(ctx, stop)

	err = run(ctx, opts, os.Stdout, os.Stderr)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintf(os.Stderr, "passbuddy %s: interrupted; its processes have ended\n", name)
		return exitInterrupted
	case err != nil:
		fmt.Fprintf(os.Stderr, "passbuddy %s: %v\n", name, err)
		return exitFailed
	}
	return exitOK
}

// version returns the module's version, as `go install ...@version` records it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
