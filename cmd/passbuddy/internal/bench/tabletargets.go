package bench

// bounded makes a target of a figure and its bound: atLeast or atMost.
type bounded func(what string, figure spread, bound float64) target

// judgeTables compares the tables other than the saturated one with their targets.
func judgeTables(r *report) (targets []target) {
	add := func(t target, ok bool) {
		if ok {
			targets = append(targets, t)
		}
	}
	capacity := float64(r.Settings.Capacity)
	for _, st := range []strategy{perConn, perConnSQL} {
		what := st.title + ", open loop at 30 and 60 %: p99 over that of an uncapped pool"
		calm := r.cellsOf(openTable, st, func(sc scenario) bool {
			return sc.load.percent == 30 || sc.load.percent == 60
		})
		add(worst(what, calm, atMost, 1.5, latencyRatio(uncapped)))
	}
	for _, i := range allIntegrations {
		what := "ordinary traffic, " + throughText(i)
		few := r.cellsOf(trafficTable, perConn, func(sc scenario) bool {
			return sc.integration == i && sc.shape.processes() <= r.Settings.Capacity
		})
		add(worst(what+": operations/s over PgBouncer's", few, atLeast, 0.98, opsRatio(bouncerTx)))
		add(worst(what+": p99 over PgBouncer's", few, atMost, 2, latencyRatio(bouncerTx)))
		add(worst(what+": connects/s after the start", few, atMost, 1, summaryOf(connectsSettled)))

		many := r.cellsOf(trafficTable, perConn, func(sc scenario) bool {
			return sc.integration == i && sc.shape.processes() > r.Settings.Capacity
		})
		what += ", more processes than permits"
		p50 := r.rivalRatio(bouncerTx, latencyP50)
		add(worst(what+": operations/s over PgBouncer's", many, atLeast, 0.6, opsRatio(bouncerTx)))
		add(worst(what+": p50 over PgBouncer's", many, atMost, 2, p50))
		add(worst(what+": p99 in ms", many, atMost, 600, summaryOf(latencyP99)))
	}

	cold := r.cellsOf(coldTable, perConn, func(sc scenario) bool { return sc.shape.name == "8x40" })
	add(worst("cold start: operations in the first second over those of a static split",
		cold, atLeast, 0.9, r.rivalRatio(static, firstSecondOps)))
	add(worst("cold start: time to steady over that of a static split",
		cold, atMost, 1.1, r.rivalRatio(static, timeToSteadyMs)))
	one := r.cellsOf(coldTable, perConn, func(sc scenario) bool { return sc.shape.name == half })
	add(worst("cold start, one permit a process: connects",
		one, atMost, 1.5*capacity, summaryOf(connectsTotal)))
	add(worst("cold start, one permit a process: mean backends after 3 s",
		one, atLeast, 0.975*capacity, summaryOf(openSettled)))

	all := r.cellsOf(changesTable, perConn, func(scenario) bool { return true })
	add(worst("changes under load: operations that failed",
		all, atMost, 0, summaryOf(operationsFailed)))
	growing := r.cellsOf(changesTable, perConn, func(sc scenario) bool {
		return sc.change != scaleIn
	})
	add(worst("rolling deploy, scale-out: longest time in ms below 0.8 of steady",
		growing, atMost, 500, summaryOf(longestLow)))
	return targets
}

// cellsOf returns the cells of a table and a strategy that have figures and that meant accepts.
func (r *report) cellsOf(t *table, st strategy, meant func(scenario) bool) (cells []*cell) {
	for _, c := range r.Cells {
		sc := c.spec.scenario
		if sc.inTable() == t && c.Strategy == st.name && c.measured() && meant(sc) {
			cells = append(cells, c)
		}
	}
	return cells
}

// figureOf returns a figure of a cell, and whether the cell has it.
type figureOf func(*cell) (spread, bool)

// worst returns the target that a figure keeps its bound in all of the cells. Without a figure
// there is no target.
func worst(what string, cells []*cell, keeps bounded, bound float64,
	figure figureOf) (t target, ok bool) {
	for _, c := range cells {
		v, there := figure(c)
		// A figure is worse if it would miss the worst figure so far as its bound.
		if !there || ok && keeps(what, v, t.Figure.Median).Met {
			continue
		}
		t, ok = keeps(what, v, bound), true
		t.Worst = c.spec.scenario.row()
		if c.Table == openTable.name {
			t.Worst += ", " + c.Workload + ", " + c.Load
		}
	}
	return t, ok
}

func summaryOf(name string) figureOf {
	return func(c *cell) (spread, bool) {
		s, ok := c.Summary[name]
		return s, ok
	}
}

func opsRatio(rival strategy) figureOf {
	return func(c *cell) (spread, bool) {
		s, ok := c.Ratios[rival.name]
		return s, ok
	}
}

func latencyRatio(rival strategy) figureOf {
	return func(c *cell) (spread, bool) {
		s, ok := c.LatencyRatios[rival.name]
		return s, ok
	}
}

func (r *report) rivalRatio(rival strategy, name string) figureOf {
	return func(c *cell) (spread, bool) {
		other := r.rival(c, rival.name)
		if other == nil {
			return spread{}, false
		}
		return c.ratioTo(other, name)
	}
}
