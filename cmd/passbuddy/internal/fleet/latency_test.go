package fleet

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestMergedLatenciesAreThoseOfAll(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	all, merged := NewLatency(), NewLatency()
	for range 3 {
		part := NewLatency()
		for range 1000 {
			d := time.Duration(random.ExpFloat64() * float64(20*time.Millisecond))
			part.Record(d)
			all.Record(d)
		}
		encoded, err := part.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := merged.Merge(encoded); err != nil {
			t.Fatal(err)
		}
	}
	if merged.Count() != 3000 {
		t.Errorf("merged %d values, want 3000", merged.Count())
	}
	for _, p := range []float64{1, 50, 99, 100} {
		if got, want := merged.Percentile(p), all.Percentile(p); got != want {
			t.Errorf("p%v is %v, want %v", p, got, want)
		}
	}
}

func TestLatencyPercentiles(t *testing.T) {
	l := NewLatency()
	for ms := 1; ms <= 100; ms++ {
		l.Record(time.Duration(ms) * time.Millisecond)
	}
	for p, want := range map[float64]time.Duration{50: 50 * time.Millisecond,
		99: 99 * time.Millisecond} {
		if got := l.Percentile(p); got < want || got > want+want/500 {
			t.Errorf("p%v is %v, want %v to 1 in 1,000", p, got, want)
		}
	}
}

func TestLatencyBounds(t *testing.T) {
	l := NewLatency()
	l.Record(-time.Second) // a clock that stepped back
	l.Record(0)
	l.Record(time.Hour)
	if l.Count() != 3 {
		t.Errorf("%d values, want 3", l.Count())
	}
	if got := l.Percentile(100); got < LongestLatency || got > LongestLatency+LongestLatency/500 {
		t.Errorf("an hour counts as %v, want %v", got, LongestLatency)
	}
}

func TestLatencyMergeRefusesNonsense(t *testing.T) {
	l := NewLatency()
	if err := l.Merge(nil); err != nil {
		t.Errorf("nothing to merge: %v", err)
	}
	if err := l.Merge([]byte("nonsense")); err == nil {
		t.Error("Merge accepted an invalid encoding")
	}
}
