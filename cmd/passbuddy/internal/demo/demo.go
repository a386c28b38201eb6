// Package demo is `passbuddy demo`: a fleet of processes on one Postgres, without PassBuddy and
// with it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
)

// drainTime is how long operations under way may take to end after the run.
const drainTime = 3 * time.Second

// result holds the figures of one run.
type result struct {
	name        string
	took        time.Duration
	counts      fleet.Counts
	served      int // goroutines with at least one successful operation
	failures    map[string]int64
	wait, total *fleet.Latency
	samples     []sample
	peak        int
	progress    []progressPoint
}

// progressPoint is the fleet's progress at a time since the start of the run.
type progressPoint struct {
	at     time.Duration
	counts fleet.Counts
}

// Run runs the fleet without PassBuddy and with it, and shows how they compare: a table on out, a
// picture in a file, and progress on status. It returns an error if a run failed or PassBuddy broke
// its promise. When it returns, its processes and temporary folders are gone.
func Run(ctx context.Context, o Options, out, status io.Writer) (err error) {
	s, err := startServers(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	introduce(out, o, s)

	var results []*result
	for _, withPassBuddy := range []bool{false, true} {
		r, err := runFleet(ctx, o, s, withPassBuddy, status)
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	writeTable(out, o, results)
	if err := writeChart(o, s, results); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nBackends over time: %s\n", o.svg)
	return verdict(out, o, results[1])
}

func introduce(out io.Writer, o Options, s *servers) {
	fmt.Fprintf(out,
		"A fleet of %d processes x %d goroutines on one Postgres, cap %d, %v without PassBuddy "+
			"and %v with it.\n",
		o.processes, o.goroutines, o.capacity, o.duration, o.duration)
	fmt.Fprintf(out, "  query     %s\n  through   %s, scope %s\n  Postgres  %s\n  Redis     %s\n\n",
		o.query, integrationText(o.integration), o.scope, s.postgresText, s.redisText)
	if s.ownPostgres {
		fmt.Fprintf(out,
			"The run without PassBuddy opens up to %d connections on your Postgres. While it "+
				"lasts,\n"+
				"other clients may be refused. Ctrl-C ends it.\n\n", o.processes*o.goroutines)
	}
}

func integrationText(integration string) string {
	if integration == fleet.SQL {
		return "database/sql with pgx's driver"
	}
	return "pgxpool"
}

// runFleet does one run. When it returns, the run's processes and backends are gone.
func runFleet(ctx context.Context, o Options, s *servers, withPassBuddy bool,
	status io.Writer) (*result, error) {
	if err := s.afresh(ctx); err != nil {
		return nil, err
	}
	sampler, err := s.connectSampler(ctx, o.scope)
	if err != nil {
		return nil, err
	}
	defer sampler.Close()
	url, err := s.workerURL()
	if err != nil {
		return nil, err
	}
	cfg := fleet.Config{
		PostgresURL: url,
		MaxConns:    o.goroutines, // a pool can grow to one connection for each goroutine
		Goroutines:  o.goroutines,
		Operation:   fleet.Operation{Exec: o.query},
		Integration: o.integration,
		RedisURL:    s.redisURL,
		Semaphore:   s.application,
		Capacity:    o.capacity,
		Scope:       o.scope,
		Drain:       drainTime,
	}
	r := &result{name: "without PassBuddy", wait: fleet.NewLatency(), total: fleet.NewLatency(),
		failures: make(map[string]int64)}
	if withPassBuddy {
		r.name, cfg.Guard = "with PassBuddy", fleet.PassBuddy
	}
	f, err := fleet.Start(ctx, slices.Repeat([]fleet.Config{cfg}, o.processes))
	if err != nil {
		return nil, err
	}
	defer f.Kill()

	start := time.Now()
	stopSampling := sampler.Start(ctx, start)
	if err := f.Begin(); err != nil {
		return nil, errors.Join(err, stopSampling())
	}
	r.watch(ctx, o, f, sampler, start, status)
	r.took = time.Since(start)
	reports, err := f.Finish()
	if err := errors.Join(err, stopSampling(), ctx.Err()); err != nil {
		return nil, err
	}
	r.samples = sampler.taken() // up to the last worker's end, so the shutdown is watched too
	_, r.peak = sampler.latest()
	if err := r.add(reports); err != nil {
		return nil, err
	}
	return r, sampler.AwaitQuiet(ctx)
}

// watch shows the progress of the run until it is over.
func (r *result) watch(ctx context.Context, o Options, f *fleet.Fleet, s *sampler, start time.Time,
	status io.Writer) {
	line := show.NewStatusLine(status)
	defer line.End()
	over := time.NewTimer(o.duration)
	defer over.Stop()
	ticker := time.NewTicker(fleet.ReportInterval)
	defer ticker.Stop()
	r.progress = append(r.progress, progressPoint{})
	for {
		select {
		case <-ticker.C:
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
		point := progressPoint{time.Since(start), f.Counts()}
		r.progress = append(r.progress, point)
		now, peak := s.latest()
		// fits in 80 columns
		line.Show(point.at,
			fmt.Sprintf("%-17s %4.1fs/%v %7s ops/s %7s refused %3d backends (peak %d)",
				r.name, point.at.Seconds(), o.duration,
				show.Thousands(rate(point.counts.Operations, point.at)),
				show.Thousands(point.counts.Refused), now, peak))
	}
}

// add adds the workers' final reports.
func (r *result) add(reports []fleet.Report) error {
	for _, report := range reports {
		r.counts.Add(report.Counts)
		r.served += report.Served
		for text, n := range report.Failures {
			r.failures[text] += n
		}
		if err := errors.Join(r.wait.Merge(report.Wait), r.total.Merge(report.Total)); err != nil {
			return err
		}
	}
	return nil
}

// rate returns n per second, rounded.
func rate(n int64, d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64(float64(n)/d.Seconds() + 0.5)
}

func writeChart(o Options, s *servers, results []*result) error {
	f, err := os.Create(o.svg)
	if err != nil {
		return err
	}
	return errors.Join(newChart(o, s.limit, results).write(f), f.Close())
}
