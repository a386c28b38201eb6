package bench

import "time"

// jain returns Jain's index of fairness: 1 if all have the same, 1/n if one has everything, 0 if
// none has anything.
func jain(shares []float64) float64 {
	var sum, squares float64
	for _, x := range shares {
		sum += x
		squares += x * x
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(shares)) * squares)
}

// worstWindow is the fewest operations that any process had in any window of the given length, or
// in the whole measured time if that is shorter. Windows begin at multiples of the width of the
// bins.
func worstWindow(processes [][]int64, width, window time.Duration) int64 {
	worst := int64(-1)
	for _, bins := range processes {
		n := max(1, min(int(window/width), len(bins)))
		var sum int64
		for i, ops := range bins {
			sum += ops
			if i >= n {
				sum -= bins[i-n]
			}
			if i >= n-1 && (worst < 0 || sum < worst) {
				worst = sum
			}
		}
	}
	return max(worst, 0)
}
