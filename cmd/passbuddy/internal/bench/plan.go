package bench

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// strategy is a way to keep a fleet under a cap.
type strategy struct {
	name, title string
	guard       fleet.Guard
	scope       string      // of PassBuddy
	poolMode    string      // of PgBouncer, if the strategy uses it
	through     integration // replaces the scenario's integration, if set
	split       bool        // each process has an equal, fixed part of the cap
	ideal       bool        // no cap, and a server with room for all
	caps        string      // which backends the cap counts: capsOpen, capsBusy, or capsNone
}

const (
	capsNone = ""
	capsOpen = "open" // all, including idle ones
	capsBusy = "busy" // those in a query or a transaction
)

var (
	bare      = strategy{name: "bare", title: "bare pool"}
	static    = strategy{name: "static", title: "static split", split: true, caps: capsOpen}
	bouncerTx = strategy{name: "pgbouncer-tx", title: "PgBouncer, transaction",
		poolMode: "transaction", caps: capsOpen}
	bouncerS = strategy{name: "pgbouncer-session", title: "PgBouncer, session", poolMode: "session",
		caps: capsOpen}
	original = strategy{name: "original", title: "the original's polling", guard: fleet.Original,
		caps: capsBusy}
	perConn = strategy{name: "passbuddy", title: "PassBuddy", guard: fleet.PassBuddy,
		scope: fleet.ScopeConnection, caps: capsOpen}
	perOut = strategy{name: "passbuddy-checkout", title: "PassBuddy, per checkout",
		guard: fleet.PassBuddy, scope: fleet.ScopeCheckout, caps: capsBusy}

	// perConnSQL is PassBuddy through database/sql beside strategies that use pgxpool.
	perConnSQL = strategy{name: "passbuddy-sql", title: "PassBuddy, database/sql",
		through: fleet.SQL, guard: fleet.PassBuddy, scope: fleet.ScopeConnection, caps: capsOpen}
	uncapped = strategy{name: "uncapped", title: "uncapped pool", ideal: true}

	// allStrategies are those of the saturated table.
	allStrategies = []strategy{bare, static, bouncerTx, bouncerS, original, perConn, perOut}
	// everyStrategy lists the strategies that a flag can name.
	everyStrategy = append(slices.Clone(allStrategies), perConnSQL, uncapped)
)

func (s strategy) flagName() string { return s.name }

// workload is the operation that every goroutine repeats.
type workload struct {
	name, title string
	operation   fleet.Operation
	takes       time.Duration // roughly; 0: not known beforehand
}

var (
	select1 = workload{name: "select1", title: "select 1",
		operation: fleet.Operation{Row: "select 1"}}
	sleep2     = sleeping(2)
	sleep5     = sleeping(5)
	sleep20    = sleeping(20)
	threeSteps = workload{name: "tx", title: "a transaction of three statements",
		operation: fleet.Operation{Transaction: []string{
			"select balance from account where id = $1",
			"update account set balance = balance + 1 where id = $1 returning balance",
			"select balance from account where id = $1",
		}}}

	// allWorkloads are those of the saturated table.
	allWorkloads = []workload{select1, sleep5, threeSteps}
)

// sleeping is a query that takes some time and no CPU.
func sleeping(ms int) workload {
	return workload{
		name: fmt.Sprintf("%dms", ms), title: fmt.Sprintf("a query of %d ms", ms),
		operation: fleet.Operation{Row: fmt.Sprintf("select 1 from pg_sleep(0.%03d)", ms)},
		takes:     time.Duration(ms) * time.Millisecond,
	}
}

func (w workload) flagName() string { return w.name }

// accounts creates the table that the transactions work on. Half-full pages leave room for updates
// in place.
var accounts = fmt.Sprintf(
	`create table account (id int primary key, balance bigint not null) with (fillfactor = 50);
insert into account select id, 0 from generate_series(1, %d) id; analyze account`,
	fleet.TransactionKeys)

type integration string

var allIntegrations = []integration{fleet.Pgxpool, fleet.SQL}

func (i integration) flagName() string { return string(i) }

// group is a number of processes with the same number of goroutines each.
type group struct{ Processes, Goroutines int }

// shape says how many processes the fleet has, and how many goroutines they have. A shape of two
// groups has uneven demand: the first group is the greedy one.
type shape struct {
	name   string
	groups []group
}

const unevenText = "1x200+7x2, with the seven also alone"

func parseShape(text string) (shape, error) {
	s := shape{name: text}
	groups := text
	if text == "uneven" {
		groups = "1x200+7x2"
	}
	for part := range strings.SplitSeq(groups, "+") {
		left, right, _ := strings.Cut(part, "x")
		processes, err1 := strconv.Atoi(left)
		goroutines, err2 := strconv.Atoi(right)
		if err1 != nil || err2 != nil || processes < 1 || processes > 200 || goroutines < 1 ||
			goroutines > 1000 {
			return s,
				fmt.Errorf(
					"-shapes names %q: it must be processes x goroutines such as 4x50 (up to "+
						"200x1000), two of them as in 1x200+7x2, or uneven", text)
		}
		s.groups = append(s.groups, group{processes, goroutines})
	}
	if len(s.groups) > 2 {
		return s, fmt.Errorf("-shapes names %q: it must have one or two groups", text)
	}
	return s, nil
}

func mustShape(text string) shape {
	s, err := parseShape(text)
	if err != nil {
		panic("bug: " + err.Error())
	}
	return s
}

func (s shape) uneven() bool { return len(s.groups) == 2 }

func (s shape) processes() (n int) {
	for _, g := range s.groups {
		n += g.Processes
	}
	return n
}

func (s shape) goroutines() (n int) {
	for _, g := range s.groups {
		n += g.Processes * g.Goroutines
	}
	return n
}

// scenario is one comparison: a workload, a shape and the strategies to compare.
type scenario struct {
	integration integration
	workload    workload
	shape       shape
	strategies  []strategy

	table  *table // nil: saturated
	load   load
	change *change // of the changes table
}

// fullPlan is the saturated table of docs/BENCHMARKS.md.
func fullPlan(chosen []strategy) (plan []scenario) {
	add := func(i integration, w workload, list []strategy, shapes ...string) {
		for _, text := range shapes {
			plan = append(plan, scenario{integration: i, workload: w, shape: mustShape(text),
				strategies: among(list, chosen)})
		}
	}
	add(fleet.Pgxpool, select1, allStrategies, "4x50", "16x12", "20x10", "40x5", "uneven")
	add(fleet.Pgxpool, sleep5, allStrategies, "4x50", "16x12", "40x5", "uneven")
	add(fleet.Pgxpool, threeSteps, allStrategies, "4x50", "16x12", "40x5", "uneven")
	for _, w := range allWorkloads {
		add(fleet.SQL, w, []strategy{static, bouncerTx, perConn, perOut}, "4x50")
	}
	return plan
}

func quickPlan(chosen []strategy) (plan []scenario) {
	for _, i := range allIntegrations {
		plan = append(plan, scenario{integration: i, workload: select1, shape: mustShape("4x50"),
			strategies: among(allStrategies, chosen)})
	}
	return plan
}

// spec describes one cell.
type spec struct {
	scenario scenario
	strategy strategy
	control  bool // of an uneven shape: the modest processes alone
	capacity int
}

// controlled reports whether the strategy also runs without the greedy process: only one that
// serves all is worth it.
func (s strategy) controlled() bool {
	return slices.ContainsFunc([]strategy{static, bouncerTx, perConn, perOut},
		func(c strategy) bool {
			return c.name == s.name
		})
}

func (s spec) greedy() int {
	if !s.scenario.shape.uneven() || s.control {
		return 0
	}
	return s.scenario.shape.groups[0].Processes
}

// groups returns the groups of the processes that run.
func (s spec) groups() []group {
	switch {
	case s.control:
		return s.scenario.shape.groups[1:]
	case s.scenario.change != nil: // one process for each slot
		return []group{{s.scenario.change.slots, s.scenario.change.goroutines}}
	}
	return s.scenario.shape.groups
}

// processes returns the most processes that run at once.
func (sc scenario) processes() int {
	if sc.change != nil {
		return sc.change.slots
	}
	return sc.shape.processes()
}

// clients returns the most connections that the pools may have together if they have no cap of
// their own.
func (sc scenario) clients() int {
	if sc.change != nil {
		return sc.change.slots * sc.change.goroutines
	}
	return sc.shape.goroutines()
}

// integration returns the integration that the cell's workers use.
func (s spec) integration() integration {
	if s.strategy.through != "" {
		return s.strategy.through
	}
	return s.scenario.integration
}

// pools returns the size of each process's pool. A pool under a guard or in front of PgBouncer is
// as large as its process could use. A static split gives each process of the whole fleet an equal
// part, and the remainder to the first ones.
func (s spec) pools() (maxConns []int) {
	processes := s.scenario.processes()
	skipped := 0
	if s.control {
		skipped = s.scenario.shape.groups[0].Processes // they keep their parts
	}
	for _, g := range s.groups() {
		for range g.Processes {
			n := g.Goroutines
			if s.strategy.split {
				n = s.capacity / processes
				if skipped+len(maxConns) < s.capacity%processes {
					n++
				}
			}
			maxConns = append(maxConns, n)
		}
	}
	return maxConns
}

// impossible returns why the cell cannot run, or nothing.
func (s spec) impossible(bouncerMissing bool) string {
	switch {
	case s.strategy.split && s.scenario.processes() > s.capacity:
		return fmt.Sprintf("impossible: %d processes cannot share %d connections beforehand",
			s.scenario.processes(), s.capacity)
	case s.strategy.poolMode != "" && bouncerMissing:
		return "skipped: PgBouncer is not installed (scripts/setup.sh --want pgbouncer)"
	}
	return ""
}
