package redisscript

import (
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	steps     = flag.Int("steps", 3000, "steps of the model's histories in this process; on a real Redis half of that")
	modelSeed = flag.Uint64("seed", 0, "the one history to run, 0: those of as many steps as -steps says")
)

const historySteps = 200

// Random histories of sessions that acquire, release, beat, crash and are cut off, on a Redis that is slow, forgets, and has its clock set.
func TestModel(t *testing.T) {
	model(t, newInProcess, *steps)
}

// The same histories on a real server.
func TestModelOnRedis(t *testing.T) {
	model(t, newRealServer, *steps/2)
}

// model runs histories at several places at once, as many as there are processors.
func model(t *testing.T, newPlace func(testing.TB, Keys) place, steps int) {
	k := NewKeys("p-n")
	first, last := uint64(1), uint64(steps/historySteps+1)
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
					t.Errorf("go test -run '%s$' -seed %d fails at step %d: %s\n\n%s", t.Name(), seed, failedAt, short(why), shrunk(p, at, k, failedAt))
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
const shrinkFor = 20 * time.Second

// shrunk is the history that fails, without the steps that it takes not, as lines to read.
func shrunk(p *plan, at place, k Keys, failedAt int) string {
	finish := failedAt == len(p.steps)
	if !finish {
		p.steps = p.steps[:failedAt+1]
	}
	fails := func(steps []step) bool {
		why, _ := (&trial{plan: p, place: at, keys: k}).run(steps, finish)
		return why != ""
	}
	end := time.Now().Add(shrinkFor)
	rest := p.steps
	for size := len(rest) / 2; size >= 1 && time.Now().Before(end); {
		smaller := false
		for from := 0; from < len(rest) && time.Now().Before(end); {
			without := slices.Concat(rest[:from], rest[min(from+size, len(rest)):])
			if fails(without) {
				rest, smaller = without, true
			} else {
				from += size
			}
		}
		if !smaller || size > 1 {
			size /= 2
		}
	}
	// What reaches Redis as it should is easier to read.
	for i := range rest {
		plain := slices.Clone(rest)
		if plain[i].fate = arrives; rest[i].fate != arrives && time.Now().Before(end) && fails(plain) {
			rest = plain
		}
	}
	var lines []string
	tr := &trial{plan: p, place: at, keys: k}
	tr.trace = func(line string) { lines = append(lines, fmt.Sprintf("%6d ms  %s", tr.now-modelStart, short(line))) }
	why, _ := tr.run(rest, finish)
	return fmt.Sprintf("capacity %d, leases of %d ms, %d steps left:\n%s\n%s", p.capacity, p.ttl, len(rest), strings.Join(lines, "\n"), short(why))
}
