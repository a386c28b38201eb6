// Command passbuddy shows what PassBuddy does: `passbuddy demo` runs a fleet of processes on one Postgres, first
// without it and then with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

const usage = `Usage: passbuddy <command> [flags]

Commands:
  demo      run a fleet of processes on one Postgres, without PassBuddy and with it
  version   print the version

passbuddy demo -h lists the flags of demo.
`

// Exit statuses, after the shell's customs.
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
		return runDemo(args[1:])
	case workerCommand:
		return runWorker()
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

func runDemo(args []string) int {
	opts, err := parseOptions(args, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(os.Stderr, "passbuddy demo:", err)
		return exitUsage
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the clean-up that the first one began

	err = demo(ctx, opts, os.Stdout, os.Stderr)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "passbuddy demo: interrupted; its processes have ended")
		return exitInterrupted
	case err != nil:
		fmt.Fprintln(os.Stderr, "passbuddy demo:", err)
		return exitFailed
	}
	return exitOK
}

// version is the module's, as `go install ...@version` records it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
