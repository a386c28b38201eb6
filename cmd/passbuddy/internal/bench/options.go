package bench

import (
	"flag"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// Values of -exec-mode. All but the first two are pgx's own names.
const (
	execModeBest  = "best"
	execModeAuto  = "auto"
	execModeExec  = "exec"
	execModeCache = "cache_statement"
)

var execModes = []string{execModeBest, execModeAuto, execModeExec, execModeCache, "cache_describe",
	"describe_exec", "simple_protocol"}

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

	quick bool
	given map[string]bool // the flags of the command line
}

// ParseOptions reads the flags. An error about an invalid value names its flag.
func ParseOptions(args []string, help io.Writer) (Options, error) {
	var o Options
	var tables, match, integrations, strategies, workloads, shapes string
	flags := flag.NewFlagSet("passbuddy bench", flag.ContinueOnError)
	flags.StringVar(&tables, "tables", "", "`list` of: "+names(allTables)+
		" (default all; with -quick saturated)")
	flags.StringVar(&match, "match", "", "`regexp`: only comparisons whose heading matches it")
	flags.StringVar(&integrations, "integration", "", "pgxpool, sql (database/sql) or pgxpool,sql")
	flags.StringVar(&strategies, "strategies", "", "`list` of: "+names(everyStrategy))
	flags.StringVar(&workloads, "workloads", "", "`list` of: "+names(allWorkloads))
	flags.StringVar(&shapes, "shapes", "",
		"`list` of processes x goroutines such as 4x50, or uneven, which is "+unevenText)
	flags.DurationVar(&o.duration, "duration", 0, "time measured in each cell (default by table: "+
		defaultsText(func(t *table) string {
			return t.duration.String()
		})+"; -quick is less)")
	flags.DurationVar(&o.warmup, "warmup", 0,
		"time before that, for connects and joining (default by table: "+
			defaultsText(func(t *table) string {
				return t.warmup.String()
			})+"; a cold start has none)")
	flags.IntVar(&o.rounds, "rounds", 0,
		"`number` of times that each cell is run (default by table: "+
			defaultsText(func(t *table) string { return strconv.Itoa(t.rounds) })+")")
	flags.IntVar(&o.capacity, "cap", 20,
		"`number` of Postgres backends that the fleet may hold together")
	flags.StringVar(&o.execMode, "exec-mode", execModeBest, "pgx's default_query_exec_mode: "+
		strings.Join(execModes, ", ")+
		".\nbest is for each what serves it best: prepared statements (cache_statement), but "+
		"exec through a PgBouncer in transaction\nmode that is older than 1.21 and cannot follow "+
		"them; auto is exec for all alike if there is such a one")
	flags.StringVar(&o.json, "json", "passbuddy-bench.json",
		"`path` of the figures to write; empty for none")
	flags.StringVar(&o.svg, "svg", "passbuddy-bench",
		"`folder` for the pictures to write; empty for none")
	flags.StringVar(&o.markdown, "markdown", "",
		"`path` of a document to write tables and pictures' links into, between its marks if it "+
			"has them")
	flags.BoolVar(&o.quick, "quick", false,
		"two minutes instead of 40: select1 at 4x50 only, through both integrations; with "+
			"-tables, the first\nscenarios of each, for a shorter time")
	flags.SetOutput(io.Discard) // the caller prints errors; help is printed here
	flags.Usage = func() {
		fmt.Fprintln(help, `Usage: passbuddy bench [flags]

Without -integration, -workloads and -shapes every comparison of docs/BENCHMARKS.md is run:

  open       arrivals that wait for nobody, 10 to 90 % of what the capacity could serve, beside an uncapped pool
  traffic    goroutines that pause between their queries
  cold       processes without a connection, and load in one instant
  changes    a rolling deploy, scale-out and scale-in under load
  saturated  goroutines that never pause

With -integration, -workloads or -shapes the saturated table has all combinations of the values given. The default
values are then pgxpool, all workloads, and 4x50,16x12,40x5,uneven. Other tables are run only where -tables names them.

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
	o.given = make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { o.given[f.Name] = true })
	o = o.timedAs(scenario{}) // the saturated table's values, for the common settings
	if err := o.validate(); err != nil {
		return o, err
	}
	if err := o.choose(tables, integrations, strategies, workloads, shapes); err != nil {
		return o, err
	}
	return o, o.keep(match)
}

// defaultsText lists a default by table.
func defaultsText(of func(*table) string) string {
	var parts []string
	for _, t := range allTables {
		parts = append(parts, t.name+" "+of(t))
	}
	return strings.Join(parts, ", ")
}

// keep removes the scenarios that do not match.
func (o *Options) keep(match string) error {
	pattern, err := regexp.Compile(match)
	if err != nil {
		return fmt.Errorf("-match: %w", err)
	}
	o.plan = slices.DeleteFunc(o.plan, func(sc scenario) bool {
		return !pattern.MatchString(sc.heading())
	})
	if len(o.plan) == 0 {
		return fmt.Errorf("-match is %q: no comparison has such a heading", match)
	}
	return nil
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
		return fmt.Errorf("-exec-mode is %q: it must be one of %s", o.execMode,
			strings.Join(execModes, ", "))
	}
	return nil
}

// choose makes the plan from the lists; an empty list means that its flag was not given.
func (o *Options) choose(tables, integrations, strategies, workloads, shapes string) error {
	var chosen []strategy
	if strategies != "" {
		var err error
		if chosen, err = pick("-strategies", strategies, everyStrategy); err != nil {
			return err
		}
	}
	combined := integrations != "" || workloads != "" || shapes != ""
	of := allTables
	switch {
	case tables != "":
		var err error
		if of, err = pick("-tables", tables, allTables); err != nil {
			return err
		}
		if combined && !slices.Contains(of, saturatedTable) {
			return fmt.Errorf(
				"-integration, -workloads and -shapes are of the saturated table, but -tables is "+
					"%q", tables)
		}
	case o.quick || combined:
		of = []*table{saturatedTable}
	}
	for _, t := range allTables { // in the order of the report
		switch {
		case !slices.Contains(of, t):
		case t == saturatedTable && combined:
			if err := o.combine(integrations, chosen, workloads, shapes); err != nil {
				return err
			}
		default:
			o.plan = append(o.plan, t.planOf(chosen, o.quick)...)
		}
	}
	// A table none of whose comparisons has a chosen strategy is left out.
	o.plan = slices.DeleteFunc(o.plan, func(sc scenario) bool { return len(sc.strategies) == 0 })
	if len(o.plan) == 0 {
		return fmt.Errorf("-strategies is %q: none of them is in the tables that are to be run",
			strategies)
	}
	return nil
}

// combine adds all combinations of what the lists name.
func (o *Options) combine(integrations string, chosen []strategy, workloads, shapes string) error {
	if chosen == nil {
		chosen = allStrategies
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
				o.plan = append(o.plan, scenario{integration: i, workload: w, shape: f,
					strategies: chosen})
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

// named is an item that a list on the command line can name.
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
			return nil, fmt.Errorf("%s names %q: it must be a list of %s", flagName, name,
				names(all))
		}
		if !slices.ContainsFunc(picked, func(v T) bool { return v.flagName() == name }) {
			picked = append(picked, all[i])
		}
	}
	return picked, nil
}
