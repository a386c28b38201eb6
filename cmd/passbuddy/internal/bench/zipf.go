package bench

import "math"

// zipf divides 1 into n parts by Zipf's law: the k-th part is in proportion to 1/k^s. With s = 0
// all parts are equal.
func zipf(n int, s float64) []float64 {
	parts := make([]float64, n)
	var sum float64
	for k := range parts {
		parts[k] = math.Pow(float64(k+1), -s)
		sum += parts[k]
	}
	for k := range parts {
		parts[k] /= sum
	}
	return parts
}
