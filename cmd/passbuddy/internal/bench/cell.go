package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/backends"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

const (
	// drainTime is how long operations in flight may go on after the end. After that the worker
	// cuts them, as behind a queue that never ends.
	drainTime = 200 * time.Millisecond
	// closingTime is how long a worker may close its pool.
	closingTime = time.Second
	// progressWindow is the length of the windows in which every process should make progress.
	progressWindow = 2 * time.Second
)

// runCell does the work of one cell once. When it returns, its processes and backends are gone.
func runCell(ctx context.Context, o Options, s *servers, sp spec) (m measurement, err error) {
	o = o.timedAs(sp.scenario)
	postgres := s.postgresFor(sp.strategy)
	sampler, err := connectSampler(ctx, postgres)
	if err != nil {
		return m, err
	}
	defer sampler.Close()
	admin, err := pgx.Connect(ctx, postgres.AdminURL())
	if err != nil {
		return m, err
	}
	defer admin.Close(context.WithoutCancel(ctx))

	parts := cpuParts{postgres: postgres.PID(), redis: s.redis.PID()}
	target := postgres.URL()
	stopBouncer := func() error { return nil }
	if sp.strategy.poolMode != "" {
		bouncer, err := s.startPgBouncer(ctx, postgres, sp)
		if err != nil {
			return m, err
		}
		stopBouncer = bouncer.Stop
		defer func() { err = errors.Join(err, bouncer.Stop()) }()
		target, parts.pgBouncer = bouncer.URL(), bouncer.PID()
	}
	configs, err := s.workers(target, sp, o.warmup)
	if err != nil {
		return m, err
	}
	f, err := fleet.Start(ctx, sp.scenario.startingWith(configs))
	if err != nil {
		return m, err
	}
	defer f.Kill()
	parts.fleet = f.PIDs()

	span := o.spanFor(sp)
	stopSampling := sampler.Start(ctx, span.Begin)
	stopHeld := func() ([]heldSample, error) { return nil, nil }
	if sp.scenario.drawn() && sp.strategy.guard == fleet.PassBuddy {
		stopHeld = sampleHeld(ctx, s.redisClient, configs[0].Semaphore, span.Begin)
	}
	var before, after counters
	err = f.BeginSpan(span)
	if err == nil {
		before, err = s.countersAt(ctx, span.From, admin, parts)
	}
	if err == nil && sp.scenario.change != nil {
		err = sp.scenario.change.apply(ctx, f, configs, span)
	}
	if err == nil {
		after, err = s.countersAt(ctx, span.Until, admin, parts)
	}
	held, heldErr := stopHeld()
	if err := errors.Join(err, heldErr); err != nil {
		return m, errors.Join(err, stopSampling())
	}
	reports, err := f.Finish()
	if err := errors.Join(err, stopBouncer(), stopSampling(), ctx.Err()); err != nil {
		return m, err
	}
	m, err = measure(sp, o, reports)
	if err != nil {
		return m, err
	}
	// Drawn scenarios have no such figures: counting the permits adds Redis commands, and the CPU
	// time of workers that joined or left would be missing.
	if !sp.scenario.drawn() {
		m.addCounters(o.duration, before, after)
	}
	m.addConnects(reports, span)
	// up to the last worker's end, so joining and shutdown are watched too
	m.addSamples(sampler.Taken(), o)
	m.addTimeline(sp, o, span, reports, sampler.Taken(), held)
	return m, s.cleanUp(ctx, sp, postgres, sampler)
}

// coldBins is the resolution of a cold start's operations.
const coldBins = 10 * time.Millisecond

// leadTime is how long before the start the workers of a cold start or an open loop are told of it.
const leadTime = 100 * time.Millisecond

// spanFor returns when a cell's load begins and which part of it counts.
func (o Options) spanFor(sp spec) fleet.Span {
	span := fleet.Span{Begin: time.Now()}
	if sp.scenario.table == coldTable || sp.scenario.table == openTable {
		span.Begin = span.Begin.Add(leadTime)
	}
	if sp.scenario.table == coldTable {
		span.BinWidth = coldBins
	}
	span.From = span.Begin.Add(o.warmup)
	span.Until = span.From.Add(o.duration)
	return span
}

// countersAt reads the counters at t, or a little later on a machine that is busy.
func (s *servers) countersAt(ctx context.Context, t time.Time, admin *pgx.Conn,
	parts cpuParts) (counters, error) {
	if err := waitUntil(ctx, t); err != nil {
		return counters{}, err
	}
	return s.readCounters(ctx, admin, parts)
}

// workers configures the fleet's processes.
func (s *servers) workers(target string, sp spec, warmup time.Duration) ([]fleet.Config, error) {
	url, err := s.workerURL(target, sp.strategy)
	if err != nil {
		return nil, err
	}
	base := fleet.Config{
		PostgresURL: url,
		Operation:   sp.scenario.workload.operation,
		Integration: string(sp.integration()),
		Guard:       sp.strategy.guard,
		RedisURL:    s.redis.URL(),
		Semaphore:   semaphoreName(),
		Capacity:    sp.capacity,
		Scope:       sp.strategy.scope,
		Drain:       sp.scenario.inTable().drain,
		Closing:     closingTime,
		Graceful:    sp.scenario.change != nil,
	}
	var configs []fleet.Config
	maxConns, loads := sp.pools(), sp.loads(warmup/2)
	for _, g := range sp.groups() {
		for range g.Processes {
			cfg := base
			cfg.Goroutines, cfg.MaxConns, cfg.Load =
				g.Goroutines, maxConns[len(configs)], loads[len(configs)]
			configs = append(configs, cfg)
		}
	}
	return configs, nil
}

// startingWith returns the configs of the workers that run from the start.
func (sc scenario) startingWith(configs []fleet.Config) []fleet.Config {
	if sc.change != nil {
		return configs[:sc.change.before]
	}
	return configs
}

// cleanUp leaves nothing of the cell in Postgres. A connection that its client gave up while
// opening it occupies a slot for a while, and no statistics show it. So cleanUp restarts the server
// after the strategy that makes such connections.
func (s *servers) cleanUp(ctx context.Context, sp spec, p *throwaway.Postgres,
	sampler *backends.Sampler) error {
	if sp.strategy.caps == capsNone && !sp.strategy.ideal {
		return p.Restart(ctx)
	}
	return sampler.AwaitQuiet(ctx)
}

// measurement holds the figures of one run of a cell.
type measurement struct {
	Round      int                `json:"round"`
	Error      string             `json:"error,omitempty"` // why there are no figures
	Values     map[string]float64 `json:"values,omitempty"`
	PerProcess []int64            `json:"operations_by_process,omitempty"`
	// of operations, by their text; refusals for lack of connections are only counted
	Failures map[string]int64 `json:"failures,omitempty"`
	Timeline *timeline        `json:"timeline,omitempty"` // of cold starts and changes
}

// measure computes the figures of the workers' reports.
func measure(sp spec, o Options, reports []fleet.Report) (measurement, error) {
	m := measurement{Values: make(map[string]float64), Failures: make(map[string]int64)}
	var sum fleet.Counts
	var served int
	var bins [][]int64
	var gap time.Duration
	for _, r := range reports {
		sum.Add(r.Counts)
		served += r.Served
		m.PerProcess = append(m.PerProcess, r.Operations)
		bins = append(bins, r.Progress.Bins)
		gap = max(gap, r.Progress.Gap)
		for text, n := range r.Failures {
			m.Failures[text] += n
		}
	}
	seconds := o.duration.Seconds()
	v := m.Values
	v[opsPerSecond] = float64(sum.Operations) / seconds
	v[operationsFailed] = float64(sum.Errors())
	v[operationsRefused] = float64(sum.Refused)
	v[goroutinesServed] = float64(served)
	if sp.scenario.load.percent > 0 {
		v[offeredPerSecond] = sp.offered()
		v[operationsShed], v[operationsUnfinished] = float64(sum.Shed), float64(sum.Unfinished)
	}
	v[worstWindowOps] = float64(worstWindow(bins, fleet.BinWidth, progressWindow))
	v[longestGap] = milliseconds(gap)
	if err := m.addLatency("", reports); err != nil {
		return m, err
	}

	modest := reports[sp.greedy():]
	var shares []float64
	for _, r := range modest {
		shares = append(shares, float64(r.Operations))
	}
	v[jainIndex] = jain(shares)
	if !sp.scenario.shape.uneven() {
		return m, nil
	}
	var ofModest float64
	for _, n := range shares {
		ofModest += n
	}
	v[greedyOps] = (float64(sum.Operations) - ofModest) / seconds
	v[modestOps] = ofModest / seconds
	return m, m.addLatency(modestPrefix, modest)
}

func (m *measurement) addLatency(prefix string, reports []fleet.Report) error {
	total, wait := fleet.NewLatency(), fleet.NewLatency()
	for _, r := range reports {
		if err := errors.Join(total.Merge(r.Total), wait.Merge(r.Wait)); err != nil {
			return err
		}
	}
	if total.Count() == 0 {
		return nil // no operation began
	}
	for _, p := range []struct {
		name string
		of   float64
	}{{"p50", 50}, {"p99", 99}, {"p999", 99.9}, {"max", 100}} {
		if p.of > 99 && p.of < 100 && total.Count() < 1000 {
			continue // it would be the longest of them
		}
		m.Values[prefix+"latency_"+p.name+"_ms"] = milliseconds(total.Percentile(p.of))
		m.Values[prefix+"wait_"+p.name+"_ms"] = milliseconds(wait.Percentile(p.of))
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// addCounters adds what the counters grew by between two reads, scaled to the measured time d. On a
// busy machine a read is late now and then. Counts over less than half of d are too rough, and are
// left out.
func (m *measurement) addCounters(d time.Duration, before, after counters) {
	v := m.Values
	between := func(from, to time.Time) (seconds, operations float64) {
		if seconds = to.Sub(from).Seconds(); seconds < d.Seconds()/2 {
			return 0, 0
		}
		return seconds, v[opsPerSecond] * seconds
	}
	if seconds, _ := between(before.sessionsAt, after.sessionsAt); seconds > 0 &&
		before.sessions >= 0 {
		v[connectsPerSecond] = float64(after.sessions-before.sessions) / seconds
	}
	if _, operations := between(before.redisAt, after.redisAt); operations > 0 {
		v[redisCommandsPerOp] =
			float64(after.redis.commands-before.redis.commands-redisOwnCommands) / operations
		v[redisScriptsPerOp] = float64(after.redis.scripts-before.redis.scripts) / operations
		v[redisReadsPerOp] =
			float64(after.redis.reads-before.redis.reads-redisOwnCommands) / operations
	}
	cpu := after.cpu.since(before.cpu)
	if seconds, operations := between(before.cpuAt, after.cpuAt); seconds > 0 && cpu.known {
		whole := d.Seconds() / seconds
		v[cpuFleet], v[cpuPostgres], v[cpuRedis], v[cpuPgBouncer] =
			cpu.fleet*whole, cpu.postgres*whole, cpu.redis*whole, cpu.pgBouncer*whole
		if operations > 0 {
			v[cpuPerOp] = cpu.total() / operations * 1e6
		}
	}
}

// addConnects adds the workers' own counts, which include connects to PgBouncer.
func (m *measurement) addConnects(reports []fleet.Report, span fleet.Span) {
	var total, late int64
	from := span.Begin.Add(settled)
	for _, r := range reports {
		total += r.Connects.Between(time.Time{}, span.Until) // later ones only cancel queries
		late += r.Connects.Between(from, span.Until)
	}
	m.Values[connectsTotal] = float64(total)
	if seconds := span.Until.Sub(from).Seconds(); seconds > 0 {
		m.Values[connectsSettled] = float64(late) / seconds
	}
}

// addTimeline adds the timeline of a scenario that is about its course.
func (m *measurement) addTimeline(sp spec, o Options, span fleet.Span, reports []fleet.Report,
	open []backends.Sample, held []heldSample) {
	if !sp.scenario.drawn() {
		return
	}
	width := span.BinWidth
	if width == 0 {
		width = fleet.BinWidth
	}
	var bins [][]int64
	for _, r := range reports {
		bins = append(bins, r.Progress.Bins)
	}
	ops := sumBins(bins, width, timelineWidth)
	var changes []time.Duration
	if c := sp.scenario.change; c != nil {
		changes = c.times(o.duration)
		m.addChange(ops, changes[0])
	} else {
		m.addColdStart(sumBins(bins, width, width), width)
	}
	m.Timeline = newTimeline(ops, o.warmup, open, held, changes)
}

// drawn reports whether the scenario is about its course, which a picture shows.
func (sc scenario) drawn() bool { return sc.table == coldTable || sc.table == changesTable }

// addSamples adds peaks over all samples, and means over those of the measured time.
func (m *measurement) addSamples(samples []backends.Sample, o Options) {
	var open, busy, n, late, lateOpen int
	v := m.Values
	for _, s := range samples {
		if s.At >= settled && s.At < o.warmup+o.duration {
			late, lateOpen = late+1, lateOpen+s.Open
		}
		v[openPeak] = max(v[openPeak], float64(s.Open))
		v[busyPeak] = max(v[busyPeak], float64(s.Busy))
		if s.At >= o.warmup && s.At < o.warmup+o.duration {
			open, busy, n = open+s.Open, busy+s.Busy, n+1
		}
	}
	v[samplesTaken] = float64(len(samples))
	if late > 0 {
		v[openSettled] = float64(lateOpen) / float64(late)
	}
	if n > 0 {
		v[openMean], v[busyMean] = float64(open)/float64(n), float64(busy)/float64(n)
	}
}

func (sp spec) String() string {
	control := ""
	if sp.control {
		control = " (modest alone)"
	}
	load := ""
	if text := sp.scenario.load.String(); text != "" {
		load = " (" + text + ")"
	}
	return fmt.Sprintf("%s %s %s%s%s %s", sp.scenario.integration, sp.scenario.workload.name,
		sp.scenario.shape.name, load, control, sp.strategy.name)
}
