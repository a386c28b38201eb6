// Package operate are the commands with which people see and steer a fleet: status, list, events,
// capacity, pause, resume, evict, doctor. None of them joins the fleet.
package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/screen"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/pgview"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

// PostgresEnv stands for --postgres where that is not given.
const PostgresEnv = "PASSBUDDY_POSTGRES_URL"

// readTimeout bounds what only looks, and each step of what acts.
const readTimeout = 5 * time.Second

// All commands share a Tool: the flags of the root command, and the terminal.
type Tool struct {
	Target *target.Target
	// Postgres has a password, perhaps: it is never shown.
	Postgres string
	JSON     bool
	Yes      bool

	Getenv func(string) string
	// OnTerminal reports whether a stream is a terminal, and Size how large that is.
	OnTerminal func(stream any) bool
	Size       func(stream any) (width, height int)
}

// New returns a Tool of this process's environment.
func New() *Tool {
	return &Tool{
		Target: &target.Target{}, Getenv: os.Getenv,
		OnTerminal: func(stream any) bool {
			f, ok := stream.(*os.File)
			return ok && term.IsTerminal(int(f.Fd()))
		},
		Size: func(stream any) (width, height int) {
			if f, ok := stream.(*os.File); ok {
				width, height, _ = term.GetSize(int(f.Fd()))
			}
			return width, height
		},
	}
}

// AddFlags adds the flags that all commands have.
func (t *Tool) AddFlags(flags *pflag.FlagSet) {
	t.Target.AddFlags(flags)
	flags.StringVar(&t.Postgres, "postgres", "", "`URL` of Postgres, to see whose its connections "+
		"are (default $"+PostgresEnv+", or Postgres is not asked)")
	flags.BoolVar(&t.JSON, "json", false, "print JSON")
	flags.BoolVar(&t.Yes, "yes", false, "do not ask before something is changed")
}

// Commands are all commands of this package.
func (t *Tool) Commands() []*cobra.Command {
	return []*cobra.Command{
		t.statusCommand(), t.listCommand(), t.eventsCommand(), t.capacityCommand(),
		t.pauseCommand(), t.resumeCommand(), t.evictCommand(), t.doctorCommand(),
	}
}

// resolve fills in from the environment what no flag gave, and checks the URLs.
func (t *Tool) resolve() error {
	if err := t.Target.Resolve(t.Getenv); err != nil {
		return exit.With(exit.Usage, err)
	}
	source := "--postgres"
	if t.Postgres == "" {
		source, t.Postgres = PostgresEnv, t.Getenv(PostgresEnv)
	}
	if t.Postgres != "" {
		if err := pgview.Check(t.Postgres); err != nil {
			return exit.With(exit.Usage, fmt.Errorf("%s: %w", source, err))
		}
	}
	return nil
}

// client returns a client that gives up soon: somebody waits for the answer.
func (t *Tool) client() (*redis.Client, error) {
	client, err := t.Target.Client()
	if err != nil {
		return nil, exit.With(exit.Usage, err)
	}
	opts := *client.Options()
	_ = client.Close()
	opts.MaxRetries, opts.DialerRetries = 1, 1
	opts.DialTimeout = min(cmp.Or(opts.DialTimeout, readTimeout), readTimeout/2)
	opts.ContextTimeoutEnabled, opts.DisableIdentity = true, true
	opts.PushNotificationProcessor = nil // the closed client's
	return redis.NewClient(&opts), nil
}

// Open resolves the flags, and returns a client of Redis. end closes it.
func (t *Tool) Open() (client *redis.Client, end func(), err error) {
	if err := t.resolve(); err != nil {
		return nil, nil, err
	}
	if client, err = t.client(); err != nil {
		return nil, nil, err
	}
	return client, func() { _ = client.Close() }, nil
}

// Inspect resolves the flags, and returns an inspector of the semaphore. end closes what it uses.
func (t *Tool) Inspect() (i *semaphore.Inspector, end func(), err error) {
	client, end, err := t.Open()
	if err != nil {
		return nil, nil, err
	}
	if i, err = semaphore.NewInspector(client, t.Target.Prefix, t.Target.Name); err != nil {
		end()
		return nil, nil, exit.With(exit.Usage, err)
	}
	return i, end, nil
}

// Build reads the document of the fleet.
func (t *Tool) Build(ctx context.Context, i *semaphore.Inspector, before *status.Document) (
	status.Document, error,
) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return status.Build(ctx, i, status.Options{
		Semaphore: t.Target.Name, Prefix: t.Target.Prefix, Postgres: t.Postgres, Before: before,
	})
}

// colours reports whether a stream takes colours.
func (t *Tool) colours(stream any) bool {
	if t.Getenv("NO_COLOR") != "" || t.Getenv("TERM") == "dumb" {
		return false
	}
	return t.OnTerminal(stream)
}

// sizeOf is the size of a terminal, and for all else a width, and a height without a bound.
func (t *Tool) sizeOf(stream any) (width, height int) {
	if !t.OnTerminal(stream) {
		return 100, 0
	}
	width, height = t.Size(stream)
	return cmp.Or(width, 80), cmp.Or(height, 24)
}

// Command makes a command whose errors carry their exit codes, and are shown by main alone.
func Command(c cobra.Command, run func(cmd *cobra.Command, args []string) error) *cobra.Command {
	c.SilenceUsage, c.SilenceErrors = true, true
	c.RunE = func(cmd *cobra.Command, args []string) error { return explain(run(cmd, args)) }
	return &c
}

// explain gives an error its exit code, and says what to do next where that can be known.
func explain(err error) error {
	var coded *exit.Error
	switch {
	case err == nil, errors.As(err, &coded):
		return err
	case errors.Is(err, context.Canceled):
		return exit.With(exit.Interrupted, errors.New("interrupted"))
	case errors.Is(err, semaphore.ErrStillHeld):
		return exit.With(exit.StillHeld, err)
	case errors.Is(err, semaphore.ErrUnavailable):
		return exit.With(exit.Unavailable, fmt.Errorf("%w. `passbuddy doctor` tries each step to "+
			"Redis, and says which one fails", err))
	}
	return exit.With(exit.Failed, err)
}

// say prints a line for people.
func say(out io.Writer, format string, args ...any) {
	fmt.Fprintln(out, screen.Clean(fmt.Sprintf(format, args...)))
}
