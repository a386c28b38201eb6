package bench

import "slices"

// The names of the values of a measurement, as in the JSON.
const (
	opsPerSecond      = "ops_per_s"
	latencyP50        = "latency_p50_ms" // of the whole operation: checkout, query, return
	latencyP99        = "latency_p99_ms"
	latencyP999       = "latency_p999_ms"
	latencyMax        = "latency_max_ms"
	operationsFailed  = "errors"
	operationsRefused = "refused" // of the errors: Postgres had too many clients
	goroutinesServed  = "goroutines_served"
	jainIndex         = "jain" // of operations by process, without the greedy one
	worstWindowOps    = "worst_window_ops"
	longestGap        = "longest_gap_ms"

	openPeak     = "backends_peak"
	openMean     = "backends_mean"
	busyPeak     = "busy_peak"
	busyMean     = "busy_mean"
	samplesTaken = "samples"

	openSettled = "backends_mean_settled" // after the first 3 s

	connectsPerSecond = "connects_per_s" // Postgres's count during the measured time
	// the workers' own count, from their start to the end of the measured time
	connectsTotal      = "connects"
	connectsSettled    = "connects_per_s_settled"
	redisCommandsPerOp = "redis_commands_per_op"
	redisScriptsPerOp  = "redis_scripts_per_op"
	redisReadsPerOp    = "redis_reads_per_op"

	cpuFleet     = "cpu_fleet_s"
	cpuPostgres  = "cpu_postgres_s"
	cpuRedis     = "cpu_redis_s"
	cpuPgBouncer = "cpu_pgbouncer_s"
	cpuPerOp     = "cpu_us_per_op"

	// Of open loops.
	offeredPerSecond     = "offered_per_s"
	operationsShed       = "shed"
	operationsUnfinished = "unfinished"

	// Of cold starts and changes.
	steadyOps      = "steady_ops_per_s"
	firstSecondOps = "first_second_ops"
	timeToSteadyMs = "time_to_steady_ms"
	lowestOps      = "lowest_ops_per_s"
	lowestToSteady = "lowest_over_steady"
	longestLow     = "longest_low_ms"

	// Of uneven shapes.
	greedyOps    = "greedy_ops_per_s"
	modestOps    = "modest_ops_per_s"
	modestPrefix = "modest_" // before the names of latencies and waits
)

// spread summarizes a value over the rounds.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	return spread{Median: (values[(n-1)/2] + values[n/2]) / 2, Min: values[0], Max: values[n-1]}
}

// cell is one strategy in one scenario, as the JSON shows it.
type cell struct {
	Table       string `json:"table,omitempty"` // none: saturated
	Load        string `json:"load,omitempty"`  // none: goroutines that never pause
	Integration string `json:"integration"`
	Workload    string `json:"workload"`
	Shape       string `json:"shape"`
	// the control of an uneven shape: without the greedy process
	ModestAlone bool              `json:"modest_alone,omitempty"`
	Strategy    string            `json:"strategy"`
	Processes   int               `json:"processes"`
	Goroutines  int               `json:"goroutines,omitempty"` // none: an open loop
	CapIsFor    string            `json:"cap_is_for,omitempty"` // "open" or "busy" backends
	Note        string            `json:"note,omitempty"`       // why there are no figures
	Rounds      []measurement     `json:"rounds,omitempty"`
	Summary     map[string]spread `json:"summary,omitempty"`
	// Ratios of operations/s, each to the rival's of the same round.
	Ratios map[string]spread `json:"ratios_ops_per_s,omitempty"`
	// Ratios of the 99th percentile, likewise; for all tables but the saturated one.
	LatencyRatios map[string]spread `json:"ratios_p99,omitempty"`

	spec spec
}

func newCells(o Options, s *servers) (cells []*cell) {
	for _, sc := range o.plan {
		for _, st := range sc.strategies {
			sp := spec{scenario: sc, strategy: st, capacity: o.capacity}
			cells = append(cells, newCell(sp, s))
			if sc.shape.uneven() && st.controlled() {
				sp.control = true
				cells = append(cells, newCell(sp, s))
			}
		}
	}
	return cells
}

func newCell(sp spec, s *servers) *cell {
	c := &cell{
		Load: sp.scenario.load.String(), Integration: string(sp.integration()),
		Workload: sp.scenario.workload.name, Shape: sp.scenario.shape.name,
		ModestAlone: sp.control, Strategy: sp.strategy.name, CapIsFor: sp.strategy.caps,
		Note: sp.impossible(s.pgBouncerVersion == ""), spec: sp,
	}
	if sp.scenario.table != nil {
		c.Table = sp.scenario.table.name
	}
	for _, g := range sp.groups() {
		c.Processes += g.Processes
		c.Goroutines += g.Processes * g.Goroutines
	}
	if sp.scenario.load.percent > 0 {
		c.Goroutines = 0
	}
	return c
}

// value returns the named value in a round.
func (c *cell) value(round int, name string) (float64, bool) {
	for _, m := range c.Rounds {
		if m.Round == round && m.Error == "" {
			v, ok := m.Values[name]
			return v, ok
		}
	}
	return 0, false
}

// summarize computes the Summary.
func (c *cell) summarize() {
	values := make(map[string][]float64)
	for _, m := range c.Rounds {
		if m.Error == "" {
			for name, v := range m.Values {
				values[name] = append(values[name], v)
			}
		}
	}
	c.Summary = make(map[string]spread)
	for name, list := range values {
		c.Summary[name] = spreadOf(list)
	}
}

// measured reports whether the cell has figures.
func (c *cell) measured() bool { return len(c.Summary) > 0 }

// ratioTo returns c's value over other's, from the rounds that have both.
func (c *cell) ratioTo(other *cell, name string) (spread, bool) {
	return c.ratioOf(other, func(of *cell, round int) (float64, bool) {
		return of.value(round, name)
	})
}

func (c *cell) ratioOf(other *cell,
	value func(of *cell, round int) (float64, bool)) (spread, bool) {
	var ratios []float64
	for _, m := range c.Rounds {
		a, ok1 := value(c, m.Round)
		b, ok2 := value(other, m.Round)
		if ok1 && ok2 && b > 0 {
			ratios = append(ratios, a/b)
		}
	}
	if len(ratios) == 0 {
		return spread{}, false
	}
	return spreadOf(ratios), true
}

// capped returns the peak and the mean of the backends that the cap counts.
func (c *cell) capped() (peak, mean spread) {
	if c.CapIsFor == capsBusy {
		return c.Summary[busyPeak], c.Summary[busyMean]
	}
	return c.Summary[openPeak], c.Summary[openMean]
}

// find returns the named cell of the saturated table if it has figures, else nil.
func (r *report) find(integration, workload, shape, strategy string, control bool) *cell {
	for _, c := range r.Cells {
		if c.Table == "" && c.Integration == integration && c.Workload == workload &&
			c.Shape == shape && c.Strategy == strategy &&
			c.ModestAlone == control && c.measured() {
			return c
		}
	}
	return nil
}

// rival returns the cell with figures that has c's scenario and another strategy, or nil.
func (r *report) rival(c *cell, strategy string) *cell {
	for _, other := range r.Cells {
		if other.Strategy == strategy && other != c && other.ModestAlone == c.ModestAlone &&
			other.sameScenario(c) && other.measured() {
			return other
		}
	}
	return nil
}

// groups returns the cells of each comparison.
func (r *report) groups() [][]*cell {
	var groups [][]*cell
	for i, c := range r.Cells {
		if i > 0 && c.sameScenario(r.Cells[i-1]) {
			groups[len(groups)-1] = append(groups[len(groups)-1], c)
		} else {
			groups = append(groups, []*cell{c})
		}
	}
	return groups
}

func (c *cell) sameScenario(other *cell) bool {
	a, b := c.spec.scenario, other.spec.scenario
	return c.Table == other.Table && a.integration == b.integration &&
		c.Workload == other.Workload && c.Shape == other.Shape && c.Load == other.Load
}
