// Package subset lets a test of many cases, or of a long simulation, run a part of them by default.
// `go test PACKAGE -full` runs all, as `make stress` does.
//
// A seed that every run chooses anew decides which cases are drawn. A test that fails prints the
// seed; -subset repeats it.
package subset

import (
	"flag"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

var (
	full = flag.Bool("full", false, "run all cases, all rounds, and simulations in full length")
	seed = flag.Uint64("subset", 0,
		"the seed by which cases are drawn without -full; 0: another one in each run")
)

var draws struct {
	mu   sync.Mutex
	seed uint64
	of   map[string]*rand.Rand // by test
}

// Full reports whether everything runs.
func Full() bool { return *full }

// Length returns long with -full, and short without.
func Length[T any](short, long T) T {
	if *full {
		return long
	}
	return short
}

// Of draws n of the cases, and keeps their order. With -full it returns all. Each call of one test
// draws anew.
func Of[T any](t testing.TB, n int, cases []T) []T {
	t.Helper()
	if *full || n >= len(cases) {
		return cases
	}
	places := draw(t, n, len(cases))
	some := make([]T, n)
	for i, place := range places {
		some[i] = cases[place]
	}
	return some
}

// Sometimes skips the test, except in one of n runs, as the seed decides. With -full it always runs.
func Sometimes(t testing.TB, n int) {
	t.Helper()
	if !*full && draw(t, 1, n)[0] != 0 {
		t.Skipf("runs in one of %d runs, and with -full", n)
	}
}

// draw returns n different numbers below all, in order.
func draw(t testing.TB, n, all int) []int {
	t.Helper()
	draws.mu.Lock()
	defer draws.mu.Unlock()
	if draws.of == nil {
		draws.of = make(map[string]*rand.Rand)
		for draws.seed = *seed; draws.seed == 0; draws.seed = rand.Uint64() % 100_000 {
		}
	}
	r := draws.of[t.Name()]
	if r == nil {
		name := fnv.New64a()
		_, _ = name.Write([]byte(t.Name()))
		r = rand.New(rand.NewPCG(draws.seed, name.Sum64()))
		draws.of[t.Name()] = r
	}
	t.Logf("%d of %d cases: -subset %d draws these again, -full runs all", n, all, draws.seed)
	places := r.Perm(all)[:n]
	slices.Sort(places)
	return places
}
