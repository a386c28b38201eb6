package redisscript

import (
	"flag"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The model drives the client that ships, package core, over the scripts that ship, through random
// histories on a Redis that it controls. Time is virtual. A failure names its seed, and its history
// is made small before it is shown. To read it:
//
//	model_specification_test.go  the properties; read this first, and alone; _session has the rest
//	model_evidence_test.go       the sums and exceptions by which they are judged
//	model_plan_test.go           what can happen in a history; _steps: how
//	model_situations, _scenarios, _losses  steps that make a rare order of events likely
//	model_time, _network         time; messages that are lost, late, doubled and out of order
//	model_session, _driver       a core, and the shell around it: what package engine does
//	model_callers, _pools, _postgres  what uses a session
//	model_trial, _scripts        one history; each script that runs, and the oracle's verdict on it
//	model_rest, _shown           the end of a history; how one that fails is shown
//	model_operator_test.go       an operator's pauses, drains and evictions
//	model_oracle_test.go         what each script must do, in Go; _exchange, _renew, _levels, ...
//	model_place, _server, _state the two places to run at, and what is stored there

var (
	steps = flag.Int("steps", 3000,
		"steps of the model's histories in this process; on a real Redis half as many")
	modelSeed = flag.Uint64("seed", 0,
		"the one history to run; 0: histories of as many steps as -steps says")
	firstSeed = flag.Uint64("first", 1, "the first history to run")
)

const historySteps = 200

// Sessions acquire, release, renew, stop, crash and are cut off, on a Redis that is slow, forgets,
// and has its clock set.
func TestModel(t *testing.T) {
	model(t, newInProcess, *steps)
}

// The same histories on a real server.
func TestModelOnRedis(t *testing.T) {
	model(t, newRealServer, *steps/2)
}

// A seed gives the same history in each run.
func TestModelReplay(t *testing.T) {
	k := NewKeys("p-n")
	at := newInProcess(t, k)
	for seed := range uint64(6) {
		var lines [2][]string
		for i := range lines {
			tr := &trial{plan: newPlan(seed+1, historySteps/4), place: at, keys: k}
			tr.trace = func(line string) { lines[i] = append(lines[i], line) }
			tr.run(tr.plan.steps, true)
		}
		for i, line := range lines[0] {
			if i >= len(lines[1]) || line != lines[1][i] {
				t.Fatalf("seed %d, line %d of %d and %d: first\n%s\nthen\n%s", seed+1, i,
					len(lines[0]), len(lines[1]), short(line),
					short(lines[1][min(i, len(lines[1])-1)]))
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
				why, failedAt := tr.run(p.steps, true)
				// A script on a real server can read the clock on both sides of a limit, and the
				// oracle knows one time for each script. The history repeats itself, and a fault
				// does, too.
				for try := 0; why != "" && at.late() > 0 && try < 3; try++ {
					t.Logf("seed %d, step %d again, whose script had %d ms: %.200s", seed, failedAt,
						at.late(), short(why))
					tr = &trial{plan: p, place: at, keys: k}
					why, failedAt = tr.run(p.steps, true)
				}
				if why != "" {
					t.Errorf("go test -run '%s$' -seed %d fails at step %d of history %d: %s\n\n%s",
						t.Name(), seed, failedAt, seed-first+1, short(why),
						shrunk(p, at, k, failedAt, why, tr.faults))
				}
				calls.Add(int64(tr.calls))
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	t.Logf("%d histories, %d steps, %d scripts in %v: %.0f scripts a second", last-first+1,
		(last-first+1)*historySteps, calls.Load(), took.Round(time.Millisecond),
		float64(calls.Load())/took.Seconds())
}
