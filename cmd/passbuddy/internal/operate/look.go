package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/screen"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

// printJSON prints a value, indented, as one document.
func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func (t *Tool) statusCommand() *cobra.Command {
	var over time.Duration
	var check, all bool
	cmd := t.Command(cobra.Command{
		Use:   "status",
		Short: "Who holds, who waits and why, on one screen, and what to do about it",
		Long: `Show the fleet on one screen: is it us, why this capacity, who holds, who waits, what
changed, and what to do. It joins nothing and writes nothing.

With --json it prints the whole document; its field "version" changes only with the
meaning of a field. Whose a connection of Postgres is, it guesses by application name and
client address: the field "guess" says how.`,
		Example: `  passbuddy status --postgres "$DATABASE_URL"
  passbuddy status --json | jq '.findings[] | select(.severity == "critical")'
  passbuddy status --check || page-somebody`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		if over < 0 || over > longestLook {
			return exit.With(exit.Usage, fmt.Errorf("--over is %v: it must be from 0 to %v", over,
				longestLook))
		}
		i, end, err := t.Inspect()
		if err != nil {
			return err
		}
		defer end()
		d, err := t.Build(cmd.Context(), i, nil)
		if err == nil && over > 0 {
			select {
			case <-time.After(over):
			case <-cmd.Context().Done():
				return cmd.Context().Err()
			}
			before := d
			d, err = t.Build(cmd.Context(), i, &before)
		}
		if failed := t.show(cmd.OutOrStdout(), d, all); failed != nil {
			return failed
		}
		switch {
		case err != nil && !t.JSON && errors.Is(err, semaphore.ErrUnavailable):
			return exit.With(exit.Unavailable, nil) // the screen has said so
		case err != nil:
			return err
		case check && d.Worst() == status.Critical:
			return exit.With(exit.Trouble, nil)
		}
		return nil
	})
	cmd.Flags().DurationVar(&over, "over", 0,
		"look twice, with this `time` between, for the timeouts of that time")
	cmd.Flags().BoolVar(&check, "check", false, "exit with 3 if a finding is critical")
	cmd.Flags().BoolVar(&all, "all", false, "show all processes and findings, on a terminal, too")
	return cmd
}

// show prints a document.
func (t *Tool) show(out io.Writer, d status.Document, all bool) error {
	if t.JSON {
		return printJSON(out, d)
	}
	width, height := t.sizeOf(out)
	if all {
		height = 0
	}
	lines := screen.Status(d, width, max(0, height-1)) // the last line is the shell's
	_, err := io.WriteString(out, screen.String(lines, t.colours(out)))
	return err
}

func (t *Tool) listCommand() *cobra.Command {
	return t.Command(cobra.Command{
		Use:   "list",
		Short: "List the semaphores of this Redis that have --prefix",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		if err := t.resolve(); err != nil {
			return err
		}
		client, err := t.client()
		if err != nil {
			return err
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), 6*readTimeout) // it looks at all keys
		defer cancel()
		names, err := semaphore.List(ctx, client, t.Target.Prefix)
		if err != nil {
			return err
		}
		type entry struct {
			Name      string `json:"name"`
			Capacity  int    `json:"capacity"`
			Held      int    `json:"held"`
			Waiting   int    `json:"waiting"`
			Processes int    `json:"processes"`
			Paused    bool   `json:"paused"`
		}
		list := []entry{}
		for _, name := range names {
			i, err := semaphore.NewInspector(client, t.Target.Prefix, name)
			if err != nil {
				continue // a key of another program that looks like ours
			}
			s, err := i.Snapshot(ctx)
			if err != nil {
				return err
			}
			list = append(list, entry{name, s.Capacity, s.Held, len(s.Waiters), len(s.Sessions),
				s.Pause != nil})
		}
		out := cmd.OutOrStdout()
		if t.JSON {
			return printJSON(out, struct {
				Version    int     `json:"version"`
				Prefix     string  `json:"prefix"`
				Semaphores []entry `json:"semaphores"`
			}{status.Version, t.Target.Prefix, list})
		}
		if len(list) == 0 {
			say(out, "No semaphore has the prefix %q in this Redis. Is it the right --redis, and the "+
				"right --prefix?", t.Target.Prefix)
			return nil
		}
		fmt.Fprintf(out, "%s %9s %9s %9s %9s\n", screen.Fit("name", 40), "processes", "capacity", "held",
			"waiting")
		for _, e := range list {
			paused := ""
			if e.Paused {
				paused = "  paused"
			}
			fmt.Fprintf(out, "%s %9d %9d %9d %9d%s\n", screen.Fit(screen.Clean(e.Name), 40), e.Processes,
				e.Capacity, e.Held, e.Waiting, paused)
		}
		return nil
	})
}

// eventsPoll is how often --follow looks.
const eventsPoll = time.Second

func (t *Tool) eventsCommand() *cobra.Command {
	var follow bool
	cmd := t.Command(cobra.Command{
		Use:   "events",
		Short: "Print what changed: joined, left, capacity, pauses, evictions, lost leases",
		Long: `Print the fleet's log of changes, the oldest first. It keeps some 200.

With --json each event is one line: at, kind, session, owner, by, detail.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		i, end, err := t.Inspect()
		if err != nil {
			return err
		}
		defer end()
		return t.events(cmd.Context(), i, cmd.OutOrStdout(), cmd.ErrOrStderr(), follow)
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those that come")
	return cmd
}

func (t *Tool) events(ctx context.Context, i *semaphore.Inspector, out, complain io.Writer,
	follow bool,
) error {
	var shown []semaphore.Event
	failing := false
	for first := true; ; first = false {
		look, cancel := context.WithTimeout(ctx, readTimeout)
		list, err := i.Events(look)
		cancel()
		switch {
		case ctx.Err() != nil && !first:
			return nil // it was told to end
		case err != nil && first:
			return err
		case err != nil && !failing:
			say(complain, "passbuddy events: %v; trying again", err)
		}
		failing = err != nil
		if err == nil {
			for _, e := range fresh(shown, list) {
				if err := t.printEvent(out, e); err != nil {
					return err
				}
			}
			shown = list
		}
		if !follow {
			return nil
		}
		select {
		case <-time.After(eventsPoll):
		case <-ctx.Done():
			return nil
		}
	}
}

// fresh are the events of now that are behind the last of those shown. The log drops old ones, and
// two events can be equal in all they say.
func fresh(shown, now []semaphore.Event) []semaphore.Event {
	if len(shown) == 0 {
		return now
	}
	last := shown[len(shown)-1]
	same := 0
	for i := len(shown) - 1; i >= 0 && shown[i] == last; i-- {
		same++
	}
	for i := len(now) - 1; i >= 0; i-- {
		if now[i] != last {
			continue
		}
		begin := i
		for begin > 0 && now[begin-1] == last {
			begin--
		}
		if begin == 0 && i-begin+1 < same { // some of the equal ones were dropped
			return now[i+1:]
		}
		return now[begin+same:]
	}
	return now
}

func (t *Tool) printEvent(out io.Writer, e semaphore.Event) error {
	event := status.Event{At: e.At.UTC(), Kind: string(e.Kind), Session: e.Session, Owner: e.Owner,
		By: e.By, Detail: e.Detail}
	if t.JSON {
		encoder := json.NewEncoder(out)
		encoder.SetEscapeHTML(false)
		return encoder.Encode(event)
	}
	_, err := fmt.Fprintf(out, "%s  %s\n", event.At.Format("2006-01-02 15:04:05"), screen.Event(event))
	return err
}
