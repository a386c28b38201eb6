// Package bench is `passbuddy bench`: it compares PassBuddy with other ways to keep a fleet under a
// cap, by the same work on the same machine.
//
// A cell is one strategy at one workload in one shape of fleet. Run runs every cell once in each
// round. The cells of one comparison run right after each other, in an order that changes with the
// round and the comparison. So other load on the machine affects them all alike.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
)

const (
	// failuresInARow is how many cells may fail one after the other before Run gives up.
	failuresInARow = 3
	// overhead is about how long a cell takes beside its warm-up and its measured time: its
	// processes start and end.
	overhead = time.Second
)

// Run measures what o asks for: tables on out, progress on status, and files. When it is
// interrupted it still reports the cells that it has. It returns an error if the run failed or
// PassBuddy broke its promise. A missed target is not an error. When it returns, its processes and
// temporary folders are gone.
func Run(ctx context.Context, o Options, out, status io.Writer) (err error) {
	s, err := startServers(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	started := time.Now()
	r := &report{
		Schema: schema, Started: started.UTC().Truncate(time.Second),
		Machine:  describeMachine(ctx, s),
		Settings: settingsOf(o, s), Cells: newCells(o, s),
	}
	introduce(out, r, o)
	err = r.run(ctx, o, s, status)
	r.Seconds = time.Since(started).Seconds()
	if r.empty() {
		return err
	}
	r.finish()
	writeTables(out, r)
	return errors.Join(err, writeFiles(out, o, r), r.broken())
}

// runs returns how many times cells run, and about how long that takes.
func (r *report) runs(o Options) (n int, takes time.Duration) {
	for _, c := range r.Cells {
		if c.Note == "" {
			as := o.timedAs(c.spec.scenario)
			n += as.rounds
			takes += time.Duration(as.rounds) * (as.warmup + as.duration + overhead)
		}
	}
	return n, takes
}

func introduce(out io.Writer, r *report, o Options) {
	runs, takes := r.runs(o)
	fmt.Fprintf(out,
		"%d comparisons, %d cells, %d runs of them, cap %d: about %v. Ctrl-C ends it and shows "+
			"what there is.\n",
		len(r.groups()), len(r.Cells), runs, r.Settings.Capacity, takes.Round(time.Second))
	fmt.Fprintln(out, r.Machine)
	for _, caution := range r.Machine.cautions() {
		fmt.Fprintln(out, caution)
	}
	fmt.Fprintf(out, "Queries are sent in %s.\n", r.Settings.execModeText())
}

// run fills r's cells, round by round.
func (r *report) run(ctx context.Context, o Options, s *servers, status io.Writer) error {
	line := show.NewStatusLine(status)
	defer line.End()
	started := time.Now()
	done, failures, rounds := 0, 0, 0
	total, _ := r.runs(o)
	for _, c := range r.Cells {
		rounds = max(rounds, o.timedAs(c.spec.scenario).rounds)
	}
	for round := 1; round <= rounds; round++ {
		for g, group := range r.groups() {
			if round > o.timedAs(group[0].spec.scenario).rounds {
				continue
			}
			for i := range group {
				c := group[(i+round-1+g)%len(group)]
				if c.Note != "" {
					continue
				}
				m, err := runCell(ctx, o, s, c.spec)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				m.Round = round
				if err != nil {
					m.Error = show.Shorten(err.Error())
					failures++
				} else {
					failures = 0
				}
				c.Rounds = append(c.Rounds, m)
				done++
				elapsed := time.Since(started)
				line.Show(elapsed, fmt.Sprintf("%d/%d, %v left: %v %s ops/s",
					done, total,
					(elapsed/time.Duration(done)*time.Duration(total-done)).Round(time.Second),
					c.spec, figure(m.Values[opsPerSecond])))
				if failures == failuresInARow {
					return fmt.Errorf("%d cells failed one after the other; the last: %w", failures,
						err)
				}
			}
		}
	}
	r.Complete = true
	return nil
}
