package main

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestMergedLatenciesAreThoseOfAll(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	all, merged := newLatency(), newLatency()
	for range 3 {
		part := newLatency()
		for range 1000 {
			d := time.Duration(random.ExpFloat64() * float64(20*time.Millisecond))
			part.record(d)
			all.record(d)
		}
		encoded, err := part.encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := merged.merge(encoded); err != nil {
			t.Fatal(err)
		}
	}
	if merged.count() != 3000 {
		t.Errorf("merged %d values, want 3000", merged.count())
	}
	for _, p := range []float64{1, 50, 99, 100} {
		if got, want := merged.percentile(p), all.percentile(p); got != want {
			t.Errorf("p%v is %v, want %v", p, got, want)
		}
	}
}

func TestLatencyPercentiles(t *testing.T) {
	l := newLatency()
	for ms := 1; ms <= 100; ms++ {
		l.record(time.Duration(ms) * time.Millisecond)
	}
	for p, want := range map[float64]time.Duration{50: 50 * time.Millisecond, 99: 99 * time.Millisecond} {
		if got := l.percentile(p); got < want || got > want+want/500 {
			t.Errorf("p%v is %v, want %v to 1 in 1,000", p, got, want)
		}
	}
}

func TestLatencyBounds(t *testing.T) {
	l := newLatency()
	l.record(-time.Second) // a clock that stepped back
	l.record(0)
	l.record(time.Hour)
	if l.count() != 3 {
		t.Errorf("%d values, want 3", l.count())
	}
	if got := l.percentile(100); got < longestLatency || got > longestLatency+longestLatency/500 {
		t.Errorf("an hour counts as %v, want %v", got, longestLatency)
	}
}

func TestLatencyMergeRefusesNonsense(t *testing.T) {
	l := newLatency()
	if err := l.merge(nil); err != nil {
		t.Errorf("nothing to merge: %v", err)
	}
	if err := l.merge([]byte("nonsense")); err == nil {
		t.Error("nonsense was merged")
	}
}
