package bench

import (
	"math"
	"testing"
	"time"
)

func TestJain(t *testing.T) {
	for _, c := range []struct {
		shares []float64
		want   float64
	}{
		{[]float64{5, 5, 5, 5}, 1}, {[]float64{7}, 1}, {[]float64{9, 0, 0}, 1.0 / 3},
		{[]float64{1, 2, 3}, 36.0 / 42}, {[]float64{0, 0}, 0}, {nil, 0},
	} {
		if got := jain(c.shares); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("jain(%v) is %v, want %v", c.shares, got, c.want)
		}
	}
}

func TestWorstWindow(t *testing.T) {
	const ms = time.Millisecond
	steady, paused := []int64{1, 1, 1, 1, 1, 1}, []int64{9, 0, 0, 1, 9, 9}
	for name, c := range map[string]struct {
		processes [][]int64
		window    time.Duration
		want      int64
	}{
		"the worst process counts":      {[][]int64{steady, paused}, 100 * ms, 0},
		"a window that covers the gap":  {[][]int64{paused}, 150 * ms, 1},
		"every position":                {[][]int64{{5, 5, 0, 1, 5, 5}}, 100 * ms, 1},
		"the last position":             {[][]int64{{5, 5, 5, 0, 0}}, 100 * ms, 0},
		"the first position":            {[][]int64{{0, 2, 5, 5}}, 100 * ms, 2},
		"longer than the run":           {[][]int64{steady, paused}, time.Second, 6},
		"shorter than a bin":            {[][]int64{{3, 2, 4}}, ms, 2},
		"a process that did not report": {[][]int64{steady, nil}, 100 * ms, 2},
		"nobody":                        {nil, 100 * ms, 0},
	} {
		if got := worstWindow(c.processes, 50*ms, c.window); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
