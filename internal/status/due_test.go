package status

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestDue(t *testing.T) {
	one := func(weight, low, high int) Process {
		return Process{Weight: weight, Min: low, Max: high, Permits: 1}
	}
	for name, c := range map[string]struct {
		capacity int
		list     []Process
		want     []float64
	}{
		"evenly":               {20, []Process{one(1, 0, 0), one(0, 0, 0)}, []float64{10, 10}},
		"by weight":            {20, []Process{one(3, 0, 0), one(1, 0, 0)}, []float64{15, 5}},
		"within max":           {20, []Process{one(1, 0, 4), one(1, 0, 0)}, []float64{4, 16}},
		"at least min":         {20, []Process{one(1, 12, 0), one(1, 0, 0)}, []float64{12, 8}},
		"a max freed by a min": {20, []Process{one(1, 12, 0), one(1, 0, 9), one(1, 0, 0)}, []float64{12, 4, 4}},
		"minima beyond it":     {4, []Process{one(1, 3, 0), one(1, 3, 0)}, []float64{3, 3}},
		"one that wants none":  {20, []Process{{Weight: 5}, one(1, 0, 0)}, []float64{0, 20}},
		"no capacity":          {0, []Process{one(1, 0, 0)}, []float64{0}},
		"nobody":               {20, nil, nil},
	} {
		setDue(c.list, c.capacity)
		for i, want := range c.want {
			if got := c.list[i].Due; math.Abs(got-want) > 1e-9 {
				t.Errorf("%s: process %d is due %v, want %v", name, i, got, want)
			}
		}
	}
}

// With any bounds, all of the capacity is due to sessions as far as maxima allow it, and none is
// due less than Min or more than Max.
func TestDueAddsUp(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		list := make([]Process, 1+r.IntN(6))
		capacity := 1 + r.IntN(40)
		most, least := 0.0, 0.0
		for i := range list {
			p := &list[i]
			p.Weight, p.Permits = 1+r.IntN(4), 1
			if r.IntN(2) == 0 {
				p.Max = 1 + r.IntN(10)
			}
			if r.IntN(2) == 0 {
				p.Min = r.IntN(6)
			}
			low, high := bounds(*p)
			least += low
			most += min(high, 1e6)
		}
		setDue(list, capacity)
		sum := 0.0
		for _, p := range list {
			low, high := bounds(p)
			if p.Due < low-1e-9 || p.Due > high+1e-9 {
				t.Fatalf("seed %d: %+v", seed, list)
			}
			sum += p.Due
		}
		if want := max(least, min(float64(capacity), most)); math.Abs(sum-want) > 1e-6 {
			t.Fatalf("seed %d: %v are due, want %v: %+v", seed, sum, want, list)
		}
	}
}
