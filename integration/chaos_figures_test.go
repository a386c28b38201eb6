//go:build unix

package integration

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// This file sums up the samples of a chaos run.

type figures struct {
	byKind   map[string]*kindFigures
	unjudged int // calms in which the machine was too busy to judge the use of the capacity
}

// kindFigures holds the worst figures of all faults of a kind.
type kindFigures struct {
	faults, riders  int
	samples         int
	most            int           // backends too many: excused
	overFor         time.Duration // at a stretch
	grant, checkout time.Duration // time until the next one
	recovered       time.Duration // the whole capacity in use
	// the least share of the capacity in use in a calm, 1 if no caller waited
	used               float64
	calmSamples, waits int
}

func newFigures() *figures { return &figures{byKind: make(map[string]*kindFigures)} }

func (f *figures) of(name string) *kindFigures {
	if f.byKind[name] == nil {
		f.byKind[name] = &kindFigures{used: 1}
	}
	return f.byKind[name]
}

func (f *figures) add(s step, e episode, p probe, recovered, took time.Duration) {
	k := f.of(s.kind.name)
	k.faults++
	k.samples += e.samples
	k.most = max(k.most, e.most)
	k.overFor = max(k.overFor, e.overFor)
	k.grant, k.checkout, k.recovered = max(k.grant, p.grant), max(k.checkout, p.checkout),
		max(k.recovered, recovered)
	if e.could > 0 {
		k.used = min(k.used, float64(e.used)/float64(e.could))
	}
	k.calmSamples += e.calmSamples
	k.waits += e.waitingInCalm
	if s.rider != "" {
		f.of("meanwhile: "+s.rider).riders++
	}
}

// table prints the figures. Times are the longest of a kind, counted from the fault, or from its
// end where the fleet cannot recover earlier.
func (f *figures) table(r *chaos) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "fault\ttimes\tlooks\ttoo many, excused\tfor\tnext grant\tnext checkout\tall "+
		"in use\tused in calm\t")
	names := make([]string, 0, len(f.byKind))
	for name := range f.byKind {
		names = append(names, name)
	}
	slices.Sort(names)
	var faults, waits, calmSamples int
	for _, name := range names {
		k := f.byKind[name]
		faults += k.faults + k.riders
		waits, calmSamples = waits+k.waits, calmSamples+k.calmSamples
		if k.faults == 0 {
			fmt.Fprintf(w, "%s\t%d\t\t\t\t\t\t\t\t\n", name, k.riders)
			continue
		}
		ms := func(d time.Duration) string { return d.Round(time.Millisecond).String() }
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%.1f%%\t\n",
			name, k.faults, k.samples, k.most, ms(k.overFor), ms(k.grant), ms(k.checkout),
			ms(k.recovered), 100*k.used)
	}
	_ = w.Flush()
	r.ledger.mu.Lock()
	samples, unheard, peak := r.ledger.samples, r.ledger.unheard, r.ledger.peak
	r.ledger.mu.Unlock()
	r.queues.mu.Lock()
	inRedis, inTurn := r.queues.samples, r.queues.grantsInTurn
	r.queues.mu.Unlock()
	r.fleet.mu.Lock()
	defer r.fleet.mu.Unlock()
	fmt.Fprintf(&b, "%d faults; %d samples of Postgres (%d unanswered), %d of Redis; largest "+
		"overshoot without an excuse %d\n",
		faults, samples, unheard, inRedis, max(0, peak))
	fmt.Fprintf(&b, "%d checkouts, %d plain grants, %d operations failed as they may\n",
		r.fleet.checkouts, r.fleet.grants, r.fleet.expected)
	fmt.Fprintf(&b, "in calms: a caller waited in %d of %d samples; %d callers and %d plain "+
		"grants in turn; %d calms too busy to judge the use of the capacity\n",
		waits, calmSamples, r.fleet.inTurn, inTurn, f.unjudged)
	return b.String()
}
