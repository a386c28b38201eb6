package bench

import (
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// table is a part of the report: scenarios with the same way of measuring.
type table struct {
	name string
	// warmup, duration and rounds are the defaults of its cells, and quick is the duration with
	// -quick.
	warmup, duration, quick time.Duration
	rounds                  int
	drain                   time.Duration // see fleet.Config.Drain
}

// The tables, in the order of the report.
var (
	openTable = &table{
		name: "open", warmup: settled, duration: 5 * time.Second, quick: 3 * time.Second,
		rounds: 1, drain: time.Second,
	}
	trafficTable = &table{
		name: "traffic", warmup: settled, duration: 4 * time.Second, quick: 3 * time.Second,
		rounds: 2, drain: drainTime,
	}
	coldTable = &table{
		name: "cold", duration: 6 * time.Second, quick: 6 * time.Second,
		rounds: 2, drain: drainTime,
	}
	changesTable = &table{
		name: "changes", warmup: 2 * time.Second, duration: 10 * time.Second,
		quick:  8 * time.Second,
		rounds: 1, drain: 2 * time.Second,
	}
	saturatedTable = &table{
		name: "saturated", warmup: 2 * time.Second, duration: 2300 * time.Millisecond,
		quick: 1500 * time.Millisecond, rounds: 2, drain: drainTime,
	}

	allTables = []*table{openTable, trafficTable, coldTable, changesTable, saturatedTable}
)

func (t *table) flagName() string { return t.name }

// timedAs returns o with the times and rounds of sc's table, unless a flag sets them.
func (o Options) timedAs(sc scenario) Options {
	t := sc.inTable()
	if !o.given["warmup"] || t == coldTable { // a cold start has no warm-up
		o.warmup = t.warmup
	}
	if !o.given["duration"] {
		o.duration = t.duration
		if o.quick {
			o.duration = t.quick
		}
	}
	if !o.given["rounds"] {
		o.rounds = t.rounds
	}
	return o
}

// inTable returns the scenario's table. A scenario without one belongs to the saturated table.
func (sc scenario) inTable() *table {
	if sc.table == nil {
		return saturatedTable
	}
	return sc.table
}

// among returns the chosen strategies of list, or all of them if none was chosen.
func among(list, chosen []strategy) (both []strategy) {
	for _, s := range list {
		named := func(c strategy) bool { return c.name == s.name }
		if chosen == nil || slices.ContainsFunc(chosen, named) {
			both = append(both, s)
		}
	}
	return both
}

// planOf returns the scenarios of a table.
func (t *table) planOf(chosen []strategy, quick bool) []scenario {
	switch {
	case t == openTable:
		return openPlan(chosen, quick)
	case t == trafficTable:
		return trafficPlan(chosen, quick)
	case t == coldTable:
		return coldPlan(chosen, quick)
	case t == changesTable:
		return changesPlan(chosen, quick)
	case quick:
		return quickPlan(chosen)
	}
	return fullPlan(chosen)
}

// openPlan returns open loops, whose arrivals do not wait for earlier ones. The ideal is a pool
// without a cap.
func openPlan(chosen []strategy, quick bool) (plan []scenario) {
	works, percents := []workload{sleep2, sleep20}, []int{10, 30, 60, 90}
	if quick {
		works, percents = works[:1], []int{60}
	}
	strategies := among([]strategy{perConn, perConnSQL, bouncerTx, static, uncapped}, chosen)
	for _, w := range works {
		for _, skewed := range []bool{false, true} {
			for _, percent := range percents {
				plan = append(plan, scenario{
					table: openTable, integration: fleet.Pgxpool, workload: w,
					shape:      shape{"8", []group{{8, openPool}}},
					strategies: strategies, load: load{percent: percent, skewed: skewed},
				})
			}
		}
	}
	return plan
}

// trafficPlan returns loads whose goroutines pause between their queries, as in ordinary traffic.
func trafficPlan(chosen []strategy, quick bool) (plan []scenario) {
	shapes := []string{"8x8", "12x8", "15x4", "30x4"}
	if quick {
		shapes = shapes[:1]
	}
	for _, i := range allIntegrations {
		for _, text := range shapes {
			plan = append(plan, scenario{
				table: trafficTable, integration: i, workload: sleep2, shape: mustShape(text),
				strategies: among([]strategy{perConn, bouncerTx}, chosen),
				load:       load{pause: pauseMean},
			})
		}
	}
	return plan
}

// coldPlan returns cold starts: all processes have joined and have no connection yet when the load
// begins, at one instant.
func coldPlan(chosen []strategy, quick bool) (plan []scenario) {
	shapes := []string{"8x40", "20x10", "40x5", "100x2"}
	if quick {
		shapes = shapes[:1]
	}
	for _, text := range shapes {
		plan = append(plan, scenario{
			table: coldTable, integration: fleet.Pgxpool, workload: sleep5, shape: mustShape(text),
			strategies: among([]strategy{perConn, bouncerTx, static}, chosen),
		})
	}
	return plan
}

// changesPlan returns fleets that change under load.
func changesPlan(chosen []strategy, quick bool) (plan []scenario) {
	changes := []*change{rollingDeploy, scaleOut, scaleIn}
	if quick {
		changes = changes[:1]
	}
	for _, c := range changes {
		plan = append(plan, scenario{
			table: changesTable, integration: fleet.Pgxpool, workload: sleep5,
			shape:      shape{c.name, []group{{c.before, c.goroutines}}},
			strategies: among([]strategy{perConn, bouncerTx, static}, chosen), change: c,
		})
	}
	return plan
}
