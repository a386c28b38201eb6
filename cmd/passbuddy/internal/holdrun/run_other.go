//go:build !unix

package holdrun

import (
	"context"
	"errors"
	"io"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
)

// GuardCommand is the argument with which this program runs as a guard.
const GuardCommand = "run-guard"

var errUnsupported = errors.New("passbuddy run needs process groups and signals, which this " +
	"system does not have: use passbuddy proxy")

// Run returns an error: see errUnsupported.
func Run(context.Context, Options, io.Reader, io.Writer, io.Writer) (int, error) {
	return exit.Failed, errUnsupported
}

// RunGuard is never called here.
func RunGuard([]string) int { return exit.Failed }
