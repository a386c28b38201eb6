package operate

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

func (t *Tool) pauseCommand() *cobra.Command {
	var opts semaphore.PauseOptions
	cmd := t.Command(cobra.Command{
		Use:   "pause",
		Short: "Grant nothing new; with --drain, have all connections given back, too",
		Long: `Grant nothing new until passbuddy resume, or for the time of --for. What is held stays held,
and open connections serve their pools. Callers that need a new one wait, each until its
own deadline.

--drain recalls everything, and returns once nothing is held: then the fleet has no
connection open. If that takes longer than --timeout, the fleet resumes by itself, also if
this program was killed meanwhile.`,
		Example: `  passbuddy pause --for 2m --reason "failover of db-primary"
  passbuddy pause --drain --timeout 30s && failover; passbuddy resume --yes`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		if opts.Timeout != 0 && !opts.Drain {
			return exit.With(exit.Usage, errors.New("--timeout is for --drain; give --for to bound a "+
				"pause"))
		}
		if opts.Timeout < 0 || opts.For < 0 || opts.Timeout > longestPause || opts.For > longestPause {
			return exit.With(exit.Usage, fmt.Errorf("--timeout is %v, and --for %v: each must be from 0 "+
				"to %v", opts.Timeout, opts.For, longestPause))
		}
		i, end, err := t.Inspect()
		if err != nil {
			return err
		}
		defer end()
		d, err := t.Build(cmd.Context(), i, nil)
		if err != nil {
			return err
		}
		if err := t.confirm(cmd, pauseEffect(d, opts)); err != nil {
			return err
		}
		began := time.Now()
		if err := i.Pause(cmd.Context(), opts); err != nil {
			switch {
			case errors.Is(err, semaphore.ErrStillHeld) && opts.Timeout > 0:
				resumed := "has been resumed"
				if errors.Is(err, semaphore.ErrUnavailable) { // not by us
					resumed = "resumes by itself within seconds"
				}
				return exit.With(exit.StillHeld, fmt.Errorf("%w; the fleet %s. `%s` shows who holds them",
					err, resumed, d.Command("status")))
			case cmd.Context().Err() != nil && opts.Drain:
				return exit.With(exit.Interrupted, fmt.Errorf("interrupted: the fleet is still being "+
					"drained%s; `%s` ends that", ending(opts.Timeout), d.Command("resume")))
			case opts.Drain && errors.Is(err, semaphore.ErrUnavailable):
				return exit.With(exit.Unavailable, fmt.Errorf("%w. If it was being drained, it still is%s: "+
					"`%s` ends that", t.Target.Explain(err), ending(opts.Timeout), d.Command("resume")))
			}
			return err
		}
		if opts.Drain {
			return t.done(cmd, "drain", "Nothing is held any more, after %s. `%s` ends the pause%s.",
				status.Span(time.Since(began).Seconds()), d.Command("resume"), lasting(opts.For))
		}
		return t.done(cmd, "pause", "Nothing new is granted. `%s` ends the pause%s.",
			d.Command("resume"), lasting(opts.For))
	})
	flags := cmd.Flags()
	flags.BoolVar(&opts.Drain, "drain", false, "recall all that is held, and wait until nothing is")
	flags.DurationVar(&opts.Timeout, "timeout", 0,
		"longest `time` to wait for the drain; then the fleet resumes (default: wait, stay paused)")
	flags.DurationVar(&opts.For, "for", 0, "resume after this `time` (default: until passbuddy resume)")
	flags.StringVar(&opts.Reason, "reason", "", "`why`, for others to see")
	return cmd
}

// longestPause is that of semaphore.PauseOptions.
const longestPause = 30 * 24 * time.Hour

func ending(timeout time.Duration) string {
	if timeout == 0 {
		return ", and stays paused"
	}
	return fmt.Sprintf(", and resumes by itself after %s at most", timeout)
}

func lasting(span time.Duration) string {
	if span == 0 {
		return ""
	}
	return fmt.Sprintf("; it ends by itself after %s", span)
}

// pauseEffect says what a pause does to a fleet.
func pauseEffect(d status.Document, opts semaphore.PauseOptions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "This stops %q from granting new permits to %s.", d.Semaphore,
		status.Count(len(d.Processes), "process"))
	if opts.Drain {
		fmt.Fprintf(&b, " %s held %s recalled: connections are closed as callers return them, and all "+
			"callers then wait until it is resumed.", status.Count(d.Held, "permit"),
			status.Verb(d.Held, "is", "are"))
	} else {
		fmt.Fprintf(&b, " %s %s held and in use; %s waiting now.", status.Count(d.Held, "permit"),
			status.Verb(d.Held, "stays", "stay"), status.Count(d.Callers, "caller")+" "+
				status.Verb(d.Callers, "is", "are"))
	}
	switch {
	case opts.For > 0:
		fmt.Fprintf(&b, " It resumes by itself after %v.", opts.For)
	case opts.Drain && opts.Timeout > 0:
		fmt.Fprintf(&b, " If that takes longer than %v, it resumes by itself.", opts.Timeout)
	default:
		b.WriteString(" It lasts until somebody resumes it.")
	}
	if p := d.Pause; p != nil {
		fmt.Fprintf(&b, " It replaces the pause of %s.", p.By)
	}
	return b.String() + unknown(d)
}

// unknown warns of a name that nobody has used: it may be a typing error.
func unknown(d status.Document) string {
	if !d.Empty() {
		return ""
	}
	return fmt.Sprintf(" Nobody has used %q in this Redis yet: `passbuddy list` shows the names.",
		d.Semaphore)
}

func (t *Tool) resumeCommand() *cobra.Command {
	return t.Command(cobra.Command{
		Use:   "resume",
		Short: "End a pause or a drain",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		i, end, err := t.Inspect()
		if err != nil {
			return err
		}
		defer end()
		d, err := t.Build(cmd.Context(), i, nil)
		if err != nil {
			return err
		}
		if d.Pause == nil {
			return t.done(cmd, "nothing", "%q is not paused by anybody.", d.Semaphore)
		}
		effect := fmt.Sprintf("This ends the pause of %q by %s", d.Semaphore, d.Pause.By)
		if d.Pause.Reason != "" {
			effect += fmt.Sprintf(" (%s)", d.Pause.Reason)
		}
		effect += fmt.Sprintf(": up to %s can be granted at once, and %s in the queue.",
			status.Count(max(0, d.Capacity.InForce-d.Held), "permit"), status.Count(d.Waiting, "request"))
		if err := t.confirm(cmd, effect); err != nil {
			return err
		}
		if err := i.Resume(cmd.Context()); err != nil {
			return err
		}
		return t.done(cmd, "resume", "Permits are granted again.")
	})
}

func (t *Tool) evictCommand() *cobra.Command {
	var opts semaphore.EvictOptions
	cmd := t.Command(cobra.Command{
		Use:   "evict SESSION",
		Short: "Take back all that one process holds",
		Long: `Recall all permits of one session: its connections are closed as callers return them. Then
it may ask for new ones, behind those that wait. SESSION is the id, or an owner that only
one session has: see passbuddy status.

--force revokes what is left after --timeout: those connections are cut, and their
transactions roll back.`,
		Example: `  passbuddy evict batch-export-0
  passbuddy evict batch-export-0 --force --timeout 30s --reason "starves the others"`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("evict takes one SESSION, an id or an owner of passbuddy status, but got %d",
					len(args))
			}
			return nil
		},
	}, func(cmd *cobra.Command, args []string) error {
		switch {
		case opts.Timeout <= 0:
			return exit.With(exit.Usage, fmt.Errorf("--timeout is %v: it must be above 0", opts.Timeout))
		case args[0] == "":
			return exit.With(exit.Usage, errors.New("SESSION is empty: give an id or an owner of "+
				"passbuddy status"))
		}
		i, end, err := t.Inspect()
		if err != nil {
			return err
		}
		defer end()
		d, err := t.Build(cmd.Context(), i, nil)
		if err != nil {
			return err
		}
		p, err := find(d, args[0])
		if err != nil {
			return exit.With(exit.Usage, err)
		}
		if p.Permits == 0 {
			return t.done(cmd, "nothing", "%s holds nothing.", p.Title())
		}
		if err := t.confirm(cmd, EvictEffect(d, p, opts)); err != nil {
			return err
		}
		if err := i.Evict(cmd.Context(), p.Session, opts); err != nil {
			switch {
			case cmd.Context().Err() != nil:
				return exit.With(exit.Interrupted, errors.New("interrupted: what was recalled is still "+
					"given back as callers return it"))
			case errors.Is(err, semaphore.ErrStillHeld):
				return exit.With(exit.StillHeld, fmt.Errorf("%w. Connections in use can be cut: add "+
					"--force", err))
			}
			return err
		}
		return t.done(cmd, "evict", "%s has been evicted.", p.Title())
	})
	flags := cmd.Flags()
	flags.BoolVar(&opts.Force, "force", false, "revoke what is still held after --timeout")
	flags.DurationVar(&opts.Timeout, "timeout", 10*time.Second,
		"longest `time` to wait for what was recalled")
	flags.StringVar(&opts.Reason, "reason", "", "`why`, for others to see")
	return cmd
}

// EvictEffect says what an eviction does.
func EvictEffect(d status.Document, p status.Process, opts semaphore.EvictOptions) string {
	effect := fmt.Sprintf("This recalls the %s of %s: %d connections in use, %d idle.",
		status.Count(p.Permits, "permit"), p.Title(), p.InUse, p.Idle)
	if opts.Force {
		effect += fmt.Sprintf(" What is still held after %v is revoked: those connections are cut, and "+
			"their transactions roll back.", opts.Timeout)
	} else {
		effect += " Connections are closed as their callers return them."
	}
	if d.Waiting > 0 {
		effect += fmt.Sprintf(" %s in the queue before it.", status.Count(d.Waiting, "request"))
	}
	return effect
}

// find returns the process of a session's id, or of an owner that only one has.
func find(d status.Document, name string) (status.Process, error) {
	var found []status.Process
	for _, p := range d.Processes {
		if p.Session == name {
			return p, nil
		}
		if p.Owner == name {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return status.Process{}, fmt.Errorf("no session or owner is called %q: `%s` lists them", name,
			d.Command("status", "--all"))
	case 1:
		return found[0], nil
	}
	ids := make([]string, len(found))
	for i, p := range found {
		ids[i] = p.Session
	}
	return status.Process{}, fmt.Errorf("%d sessions are called %q: say which, one of %s", len(found),
		name, strings.Join(ids, ", "))
}
