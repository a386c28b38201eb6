package bench

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// Values of -exec-mode. They are pgx's own names, but for the first two.
const (
	execModeBest  = "best"
	execModeAuto  = "auto"
	execModeExec  = "exec"
	execModeCache = "cache_statement"
)

var execModes = []string{execModeBest, execModeAuto, execModeExec, execModeCache, "cache_describe", "describe_exec", "simple_protocol"}

// Options are the flags of the benchmarks.
type Options struct {
	plan     []scenario
	capacity int
	duration time.Duration
	warmup   time.Duration
	rounds   int
	execMode string
	json     string
	svg      string
	markdown string
}

// ParseOptions reads the flags, and refuses values that cannot work by the name of their flag.
func ParseOptions(args []string, help io.Writer) (Options, error) {
	var o Options
	var integrations, strategies, workloads, shapes string
	var quick bool
	flags := flag.NewFlagSet("passbuddy bench", flag.ContinueOnError)
	flags.StringVar(&integrations, "integration", "", "pgxpool, sql (database/sql) or pgxpool,sql")
	flags.StringVar(&strategies, "strategies", "", "`list` of: "+names(allStrategies))
	flags.StringVar(&workloads, "workloads", "", "`list` of: "+names(allWorkloads))
	flags.StringVar(&shapes, "shapes", "", "`list` of processes x goroutines such as 4x50, or uneven, which is "+unevenText)
	flags.DurationVar(&o.duration, "duration", 0, "time measured in each cell (default 2.3s, -quick 1.5s)")
	flags.DurationVar(&o.warmup, "warmup", 2*time.Second, "time before that, for connects and joining")
	flags.IntVar(&o.rounds, "rounds", 0, "`number` of times that each cell is run (default 3, -quick 2)")
	flags.IntVar(&o.capacity, "cap", 20, "`number` of Postgres backends that the fleet may hold together")
	flags.StringVar(&o.execMode, "exec-mode", execModeBest, "pgx's default_query_exec_mode: "+strings.Join(execModes, ", ")+
		".\nbest is for each what serves it best: prepared statements (cache_statement), but exec through a PgBouncer in transaction\nmode that is older than 1.21 and cannot follow them; auto is exec for all alike if there is such a one")
	flags.StringVar(&o.json, "json", "passbuddy-bench.json", "`path` of the figures to write; empty for none")
	flags.StringVar(&o.svg, "svg", "passbuddy-bench", "`folder` for the pictures to write; empty for none")
	flags.StringVar(&o.markdown, "markdown", "", "`path` of a document to write tables and pictures' links into, between its marks if it has them")
	flags.BoolVar(&quick, "quick", false, "two minutes instead of 30: select1 at 4x50 only, through both integrations")
	flags.SetOutput(io.Discard) // errors are the caller's to print; help is printed here
	flags.Usage = func() {
		fmt.Fprintln(help, `Usage: passbuddy bench [flags]

Without -integration, -workloads and -shapes every comparison of docs/BENCHMARKS.md is run. With one of them, all
combinations of what they name are, where those left out mean pgxpool, all workloads, and 4x50,16x12,40x5,uneven.

Flags:`)
		flags.SetOutput(help)
		flags.PrintDefaults()
		flags.SetOutput(io.Discard)
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.duration == 0 && !given(flags, "duration") {
		o.duration = 2300 * time.Millisecond
		if quick {
			o.duration = 1500 * time.Millisecond
		}
	}
	if o.rounds == 0 && !given(flags, "rounds") {
		o.rounds = 3
		if quick {
			o.rounds = 2
		}
	}
	if err := o.validate(); err != nil {
		return o, err
	}
	return o, o.choose(integrations, strategies, workloads, shapes, quick)
}

func given(flags *flag.FlagSet, name string) (found bool) {
	flags.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

func (o Options) validate() error {
	switch {
	case o.capacity < 1 || o.capacity > 1000:
		return fmt.Errorf("-cap is %d: it must be from 1 to 1000", o.capacity)
	case o.rounds < 1 || o.rounds > 1000:
		return fmt.Errorf("-rounds is %d: it must be from 1 to 1000", o.rounds)
	case o.duration < 100*time.Millisecond || o.duration > time.Hour:
		return fmt.Errorf("-duration is %v: it must be from 100ms to 1h", o.duration)
	case o.warmup < 0 || o.warmup > time.Minute:
		return fmt.Errorf("-warmup is %v: it must be from 0 to 1m", o.warmup)
	case !slices.Contains(execModes, o.execMode):
		return fmt.Errorf("-exec-mode is %q: it must be one of %s", o.execMode, strings.Join(execModes, ", "))
	}
	return nil
}

// choose makes the plan from the lists; an empty one was not given.
func (o *Options) choose(integrations, strategies, workloads, shapes string, quick bool) error {
	chosen := allStrategies
	if strategies != "" {
		var err error
		if chosen, err = pick("-strategies", strategies, allStrategies); err != nil {
			return err
		}
	}
	switch {
	case integrations != "" || workloads != "" || shapes != "":
	case quick:
		o.plan = quickPlan(chosen)
		return nil
	default:
		o.plan = fullPlan(chosen)
		return nil
	}

	through, err := pick("-integration", or(integrations, fleet.Pgxpool), allIntegrations)
	if err != nil {
		return err
	}
	works, err := pick("-workloads", or(workloads, names(allWorkloads)), allWorkloads)
	if err != nil {
		return err
	}
	var forms []shape
	for text := range strings.SplitSeq(or(shapes, "4x50,16x12,40x5,uneven"), ",") {
		f, err := parseShape(text)
		if err != nil {
			return err
		}
		forms = append(forms, f)
	}
	for _, i := range through {
		for _, w := range works {
			for _, f := range forms {
				o.plan = append(o.plan, scenario{i, w, f, chosen})
			}
		}
	}
	return nil
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// named is what a list on the command line picks from.
type named interface{ flagName() string }

func names[T named](all []T) string {
	var list []string
	for _, v := range all {
		list = append(list, v.flagName())
	}
	return strings.Join(list, ",")
}

func pick[T named](flagName, list string, all []T) ([]T, error) {
	var picked []T
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(all, func(v T) bool { return v.flagName() == name })
		if i < 0 {
			return nil, fmt.Errorf("%s names %q: it must be a list of %s", flagName, name, names(all))
		}
		if !slices.ContainsFunc(picked, func(v T) bool { return v.flagName() == name }) {
			picked = append(picked, all[i])
		}
	}
	return picked, nil
}
