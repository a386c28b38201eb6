package bench

import (
	"slices"
)

// judgeTables compares the tables other than the saturated one with their targets.
func judgeTables(r *report) (targets []target) {
	add := func(t target, ok bool) {
		if ok {
			targets = append(targets, t)
		}
	}
	for _, st := range []strategy{perConn, perConnSQL} {
		calm := r.cellsOf(openTable, st, func(sc scenario) bool { return sc.load.percent == 30 || sc.load.percent == 60 })
		add(worst(st.title+", open loop at 30 and 60 %: p99 over that of an uncapped pool", calm, atMost, 1.5, latencyRatio(uncapped)))
	}
	for _, i := range allIntegrations {
		what := "ordinary traffic, " + throughText(i)
		within := r.cellsOf(trafficTable, perConn, func(sc scenario) bool {
			return sc.integration == i && sc.shape.processes() <= r.Settings.Capacity
		})
		add(worst(what+": operations/s over PgBouncer's", within, atLeast, 0.98, opsRatio(bouncerTx)))
		add(worst(what+": p99 over PgBouncer's", within, atMost, 2, latencyRatio(bouncerTx)))
		add(worst(what+": connects a second after the start", within, atMost, 1, summaryOf(connectsSettled)))
		beyond := r.cellsOf(trafficTable, perConn, func(sc scenario) bool {
			return sc.integration == i && sc.shape.processes() > r.Settings.Capacity
		})
		what += ", more processes than permits"
		add(worst(what+": operations/s over PgBouncer's", beyond, atLeast, 0.6, opsRatio(bouncerTx)))
		add(worst(what+": p50 over PgBouncer's", beyond, atMost, 2, r.rivalRatio(bouncerTx, latencyP50)))
		add(worst(what+": p99 in ms", beyond, atMost, 600, summaryOf(latencyP99)))
	}
	cold := r.cellsOf(coldTable, perConn, func(sc scenario) bool { return sc.shape.name == "8x40" })
	add(worst("cold start: operations in the first second over those of a static split", cold, atLeast, 0.9, r.rivalRatio(static, firstSecondOps)))
	add(worst("cold start: time to steady over that of a static split", cold, atMost, 1.1, r.rivalRatio(static, timeToSteadyMs)))
	one := r.cellsOf(coldTable, perConn, func(sc scenario) bool { return sc.shape.name == half })
	add(worst("cold start, one permit a process: connects", one, atMost, 1.5*float64(r.Settings.Capacity), summaryOf(connectsTotal)))
	add(worst("cold start, one permit a process: mean backends after 3 s", one, atLeast, 0.975*float64(r.Settings.Capacity), summaryOf(openSettled)))

	all := r.cellsOf(changesTable, perConn, func(scenario) bool { return true })
	add(worst("changes under load: operations that failed", all, atMost, 0, summaryOf(operationsFailed)))
	growing := slices.DeleteFunc(slices.Clone(all), func(c *cell) bool { return c.spec.scenario.change == scaleIn })
	add(worst("rolling deploy, scale-out: longest time in ms below 0.8 of steady", growing, atMost, 500, summaryOf(longestLow)))
	return targets
}

// cellsOf are the cells with figures of a table and a strategy that are meant.
func (r *report) cellsOf(t *table, st strategy, meant func(scenario) bool) (cells []*cell) {
	for _, c := range r.Cells {
		if c.spec.scenario.inTable() == t && c.Strategy == st.name && c.measured() && meant(c.spec.scenario) {
			cells = append(cells, c)
		}
	}
	return cells
}

// worst is the target that a value keeps a bound in all of the cells. Without a value there is none.
func worst(what string, cells []*cell, bounded func(string, spread, float64) target, bound float64, value func(*cell) (spread, bool)) (t target, ok bool) {
	for _, c := range cells {
		v, there := value(c)
		if !there {
			continue
		}
		u := bounded(what, v, bound)
		u.Worst = c.spec.scenario.row()
		if c.Table == openTable.name {
			u.Worst += ", " + c.Workload + ", " + c.Load
		}
		if !ok || t.Met && !u.Met || t.Met == u.Met && further(bounded, u.Figure, t.Figure) {
			t, ok = u, true
		}
	}
	return t, ok
}

// further says whether a is worse than b for the kind of bound.
func further(bounded func(string, spread, float64) target, a, b spread) bool {
	// A value keeps itself as its bound; a better one keeps it too.
	return !bounded("", a, b.Median).Met
}

func summaryOf(name string) func(*cell) (spread, bool) {
	return func(c *cell) (spread, bool) {
		s, ok := c.Summary[name]
		return s, ok
	}
}

func opsRatio(rival strategy) func(*cell) (spread, bool) {
	return func(c *cell) (spread, bool) {
		s, ok := c.Ratios[rival.name]
		return s, ok
	}
}

func latencyRatio(rival strategy) func(*cell) (spread, bool) {
	return func(c *cell) (spread, bool) {
		s, ok := c.LatencyRatios[rival.name]
		return s, ok
	}
}

func (r *report) rivalRatio(rival strategy, name string) func(*cell) (spread, bool) {
	return func(c *cell) (spread, bool) {
		other := r.rival(c, rival.name)
		if other == nil {
			return spread{}, false
		}
		return c.ratioTo(other, name)
	}
}
