package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/membership"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

func (t *Tool) capacityCommand() *cobra.Command {
	var fromPostgres bool
	var over time.Duration
	cmd := Command(cobra.Command{
		Use:   "capacity [N|auto]",
		Short: "Show, set or withdraw the capacity of the whole fleet",
		Long: `Without an argument, show the capacity in force and where it comes from.

N is in force at once, whatever the processes declare, until it is changed or withdrawn.
A lower one revokes nothing: it takes effect as permits are given back. auto withdraws it:
then the smallest that a live process declares is in force.

--from-postgres proposes one: max_connections, less those reserved, less the most that
others have had during --over. It says the sum, and sets it after it has asked, or with
--yes. Others can have more at other times: leave them room.`,
		Example: `  passbuddy capacity
  passbuddy capacity 60
  passbuddy capacity auto
  passbuddy capacity --from-postgres --postgres "$DATABASE_URL"`,
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{"auto"},
	}, func(cmd *cobra.Command, args []string) error {
		n := -1
		switch {
		case len(args) == 1 && fromPostgres:
			return exit.With(exit.Usage, errors.New("give N, or --from-postgres, not both"))
		case len(args) == 1 && args[0] == "auto":
			n = 0
		case len(args) == 1:
			var err error
			if n, err = strconv.Atoi(args[0]); err != nil || n < 1 || n > membership.Most {
				return exit.With(exit.Usage, fmt.Errorf("the capacity is %q: it must be a number from 1 "+
					"to %d, or auto", args[0], membership.Most))
			}
		}
		i, end, err := t.Inspect()
		if err != nil {
			return err
		}
		defer end()
		if fromPostgres && t.Postgres == "" {
			return exit.With(exit.Usage, fmt.Errorf("--from-postgres needs --postgres, or %s", PostgresEnv))
		}
		d, err := t.Build(cmd.Context(), i, nil)
		if err != nil {
			return err
		}
		switch {
		case fromPostgres:
			if d.Postgres == nil {
				return fmt.Errorf("read Postgres: it cannot be asked: %s", d.PostgresError)
			}
			others, err := t.peak(cmd.Context(), i, d, over)
			if err != nil {
				return err
			}
			var sum string
			if n, sum = propose(d, others); n < 1 {
				return exit.With(exit.Failed, fmt.Errorf("%s: no room is left", sum))
			}
			say(cmd.ErrOrStderr(), "%s", sum)
			if n == d.Capacity.InForce {
				return t.done(cmd, "nothing", "The capacity is %d already.", n)
			}
		case n < 0:
			return t.showCapacity(cmd, d)
		case n == 0 && d.Capacity.Operator == 0:
			return t.done(cmd, "nothing", "No operator has set a capacity of %q: it is what processes "+
				"declare already.", d.Semaphore)
		}
		effect := capacityEffect(d, n)
		if err := t.confirm(cmd, effect); err != nil {
			return err
		}
		if err := i.SetCapacity(cmd.Context(), n); err != nil {
			return err
		}
		now, err := i.Snapshot(cmd.Context())
		if err != nil {
			return err
		}
		return t.done(cmd, "capacity", "The capacity is %d now.", now.Capacity)
	})
	cmd.Flags().BoolVar(&fromPostgres, "from-postgres", false, "propose what Postgres has room for")
	cmd.Flags().DurationVar(&over, "over", 3*time.Second,
		"for what `time` --from-postgres looks at others' backends")
	return cmd
}

// peak is the most backends that others have during a time.
func (t *Tool) peak(
	ctx context.Context, i *semaphore.Inspector, d status.Document, over time.Duration,
) (int, error) {
	others := d.Postgres.Others
	for end := time.Now().Add(over); time.Now().Before(end); {
		select {
		case <-time.After(min(time.Second, over/3)):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		now, err := t.Build(ctx, i, nil)
		if err != nil {
			return 0, err
		}
		if now.Postgres == nil {
			return 0, fmt.Errorf("read Postgres: it cannot be asked: %s", now.PostgresError)
		}
		others = max(others, now.Postgres.Others)
	}
	return others, nil
}

// showCapacity prints the capacity, and where it comes from.
func (t *Tool) showCapacity(cmd *cobra.Command, d status.Document) error {
	out := cmd.OutOrStdout()
	if t.JSON {
		return printJSON(out, struct {
			Version  int             `json:"version"`
			Capacity status.Capacity `json:"capacity"`
		}{status.Version, d.Capacity})
	}
	say(out, "%d in force, %d held", d.Capacity.InForce, d.Held)
	if d.Capacity.Operator > 0 {
		say(out, "set by %s", cmp.Or(d.Capacity.SetBy, "an operator"))
	}
	for _, one := range d.Capacity.Declared {
		var names []string
		for _, p := range d.Processes {
			if p.Capacity == one.Capacity && len(names) < 3 {
				names = append(names, p.Owner)
			}
		}
		if rest := one.Sessions - len(names); rest > 0 {
			names = append(names, fmt.Sprintf("%d more", rest))
		}
		say(out, "%d declared by %s", one.Capacity, strings.Join(names, ", "))
	}
	return nil
}

// propose is a capacity that Postgres has room for, and the sum that leads to it.
func propose(d status.Document, others int) (n int, sum string) {
	v := d.Postgres
	n = v.Usable() - others
	sum = fmt.Sprintf("max_connections %d - reserved %d - others' backends %d = %d (ours are told "+
		"apart %s)", v.MaxConnections, v.Reserved, others, n, v.Guess)
	for _, l := range v.Limits {
		for _, g := range v.Backends {
			name := map[string]string{"role": g.User, "database": g.Database}[l.Kind]
			if g.Ours && name == l.Name && l.Limit < n {
				n = l.Limit
				sum += fmt.Sprintf("; the %s %s has a limit of %d", l.Kind, l.Name, l.Limit)
			}
		}
	}
	return n, sum
}

// capacityEffect says what setting a capacity does to a fleet.
func capacityEffect(d status.Document, n int) string {
	target := n
	before := "none"
	if d.Capacity.InForce > 0 {
		before = strconv.Itoa(d.Capacity.InForce)
	}
	text := fmt.Sprintf("This sets the capacity of %q from %s to %d", d.Semaphore, before, n)
	if n == 0 {
		if len(d.Capacity.Declared) > 0 {
			target = d.Capacity.Declared[0].Capacity
		}
		text = fmt.Sprintf("This withdraws the operator's capacity of %q: from %s to %d, the smallest "+
			"that a process declares", d.Semaphore, before, target)
	}
	text += fmt.Sprintf(" for %s.", status.Count(len(d.Processes), "process"))
	switch more := target - d.Held; {
	case more < 0:
		text += fmt.Sprintf(" %d are held: %d are recalled, as their callers return them.", d.Held, -more)
	case d.Waiting > 0 && target > d.Capacity.InForce:
		text += fmt.Sprintf(" %s can be granted at once; %s in the queue.", status.Count(more,
			"permit"), status.Count(d.Waiting, "request"))
	}
	if v := d.Postgres; v != nil && target > max(0, v.Usable()-v.Others) {
		text += fmt.Sprintf(" Postgres has room for %d: beyond it, connections fail.",
			max(0, v.Usable()-v.Others))
	}
	return text
}
