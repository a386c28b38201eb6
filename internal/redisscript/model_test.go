package redisscript

import (
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The model drives the client that ships, package core, over the scripts that ship, through random histories
// on a Redis that it controls. Time is virtual. Every failure names a seed, and is made small before it is shown.
//
//	model_specification_test.go  what must hold; read it first, and alone
//	model_steps_test.go          what can happen in a history, drawn from its seed
//	model_network_test.go        time, and the messages that are lost, late, doubled and out of order
//	model_session_test.go        a session: a core.Core, and what package engine does around it
//	model_pools_test.go          its connection pools, and the backends of Postgres
//	model_trial_test.go          one history; after each script the oracle has the word
//	model_rest_test.go           its end, when all must return
//	model_oracle_test.go         what each script must do, in Go; and _exchange, _renew, _recalls, _backends
//	model_place_test.go          the two places to run at: miniredis, and a real server
//	model_state_test.go          what is stored in Redis; model_shown_test.go prints it

var (
	steps     = flag.Int("steps", 3000, "steps of the model's histories in this process; on a real Redis half of that")
	modelSeed = flag.Uint64("seed", 0, "the one history to run, 0: those of as many steps as -steps says")
	firstSeed = flag.Uint64("first", 1, "the first history to run")
)

const historySteps = 200

// Random histories of sessions that acquire, release, beat, stop, crash and are cut off, on a Redis that is
// slow, forgets, and has its clock set.
func TestModel(t *testing.T) {
	model(t, newInProcess, *steps)
}

// The same histories on a real server.
func TestModelOnRedis(t *testing.T) {
	model(t, newRealServer, *steps/2)
}

// A seed is one history, and the same in each run.
func TestModelReplay(t *testing.T) {
	k := NewKeys("p-n")
	at := newInProcess(t, k)
	for seed := range uint64(4) {
		var lines [2][]string
		for i := range lines {
			tr := &trial{plan: newPlan(seed+1, historySteps), place: at, keys: k}
			tr.trace = func(line string) { lines[i] = append(lines[i], line) }
			tr.run(tr.plan.steps, true)
		}
		for i, line := range lines[0] {
			if i >= len(lines[1]) || line != lines[1][i] {
				t.Fatalf("seed %d, line %d of %d and %d: first\n%s\nthen\n%s", seed+1, i, len(lines[0]), len(lines[1]),
					short(line), short(lines[1][min(i, len(lines[1])-1)]))
			}
		}
	}
}

// model runs histories at several places at once, as many as there are processors.
func model(t *testing.T, newPlace func(testing.TB, Keys) place, steps int) {
	k := NewKeys("p-n")
	first := *firstSeed
	last := first + uint64(steps/historySteps)
	if *modelSeed != 0 {
		first, last = *modelSeed, *modelSeed
	}
	places := make([]place, min(uint64(runtime.GOMAXPROCS(0)), last-first+1))
	for i := range places {
		places[i] = newPlace(t, k)
	}
	began := time.Now()
	var calls atomic.Int64
	var next atomic.Uint64
	next.Store(first)
	var wg sync.WaitGroup
	for _, at := range places {
		wg.Go(func() {
			for seed := next.Add(1) - 1; seed <= last && !t.Failed(); seed = next.Add(1) - 1 {
				p := newPlan(seed, historySteps)
				tr := &trial{plan: p, place: at, keys: k}
				if why, failedAt := tr.run(p.steps, true); why != "" {
					t.Errorf("go test -run '%s$' -seed %d fails at step %d of history %d: %s\n\n%s", t.Name(), seed, failedAt, seed-first+1, short(why),
						shrunk(p, at, k, failedAt, why, tr.faults))
				}
				calls.Add(int64(tr.calls))
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	t.Logf("%d histories, %d steps, %d scripts in %v: %.0f scripts a second", last-first+1, (last-first+1)*historySteps, calls.Load(),
		took.Round(time.Millisecond), float64(calls.Load())/took.Seconds())
}

// shrinkFor bounds how long a history that fails is made smaller.
var shrinkFor = flag.Duration("shrink", 20*time.Second, "how long the model makes a history smaller that fails")

// shrunk is the history that fails, without the steps and the mishaps that it takes not, as lines to read. It
// still breaks the same property.
func shrunk(p *plan, at place, k Keys, failedAt int, why string, faults []string) string {
	property, _, _ := strings.Cut(why, ":")
	finish := failedAt == len(p.steps)
	if !finish {
		p.steps = p.steps[:failedAt+1]
	}
	fails := func(steps []step, calmed map[string]bool) bool {
		with := *p
		with.calmed = calmed
		why, _ := (&trial{plan: &with, place: at, keys: k}).run(steps, finish)
		return strings.HasPrefix(why, property)
	}
	end := time.Now().Add(*shrinkFor)
	rest := p.steps
	for size := len(rest) / 2; size >= 1 && time.Now().Before(end); {
		smaller := false
		for from := 0; from < len(rest) && time.Now().Before(end); {
			without := slices.Concat(rest[:from], rest[min(from+size, len(rest)):])
			if fails(without, p.calmed) {
				rest, smaller = without, true
			} else {
				from += size
			}
		}
		if !smaller || size > 1 {
			size /= 2
		}
	}
	// What reaches Redis as it should is easier to read. The messages have other numbers by now.
	tr := &trial{plan: p, place: at, keys: k}
	tr.run(rest, finish)
	for _, fault := range append(tr.faults, faults...) {
		calmed := maps.Clone(p.calmed)
		if calmed[fault] = true; time.Now().Before(end) && fails(rest, calmed) {
			p.calmed = calmed
		}
	}
	var lines []string
	tr = &trial{plan: p, place: at, keys: k}
	tr.trace = func(line string) { lines = append(lines, fmt.Sprintf("%10v  %s", tr.now, short(line))) }
	why, _ = tr.run(rest, finish)
	return fmt.Sprintf("capacity %d, leases of %v, a round trip takes %v, %d steps left:\n%s\n%s", p.capacity, p.ttl, p.roundTrip, len(rest),
		strings.Join(lines, "\n"), short(why))
}
