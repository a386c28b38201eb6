package status

// setDue sets what each process is due: its part of the capacity by weight, among those that hold
// or want permits. A process whose Min is more is due that, one whose Max is less no more than that,
// and the others share the rest.
func setDue(processes []Process, capacity int) {
	open := make(map[int]bool) // those whose due is not fixed by a bound yet
	for i, p := range processes {
		processes[i].Due = 0
		if capacity > 0 && p.Permits+p.Queued+p.Waiting > 0 {
			open[i] = true
		}
	}
	left := float64(capacity)
	for len(open) > 0 {
		weights := 0.0
		for i := range open {
			weights += weightOf(processes[i])
		}
		// Bounds are fixed on the side on which they move most first. Otherwise a Max that is
		// reached only because of another's Min would be kept.
		below, above := 0.0, 0.0
		for i := range open {
			part := left * weightOf(processes[i]) / weights
			low, high := bounds(processes[i])
			below += max(0, low-part)
			above += max(0, part-high)
		}
		fixed := false
		taken := 0.0
		for i := range open {
			p := &processes[i]
			part := left * weightOf(*p) / weights
			low, high := bounds(*p)
			p.Due = part
			switch {
			case below >= above && part < low:
				p.Due = low
			case below <= above && part > high:
				p.Due = high
			default:
				continue
			}
			taken += p.Due
			delete(open, i)
			fixed = true
		}
		if !fixed {
			return
		}
		left = max(0, left-taken)
	}
}

func weightOf(p Process) float64 { return float64(max(1, p.Weight)) }

func bounds(p Process) (low, high float64) {
	low, high = float64(max(0, p.Min)), 1e9
	if p.Max > 0 {
		high = float64(p.Max)
	}
	return low, max(low, high)
}
