package bench

import (
	"math"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/backends"
)

const (
	// timelineWidth is the resolution of timelines, and the length of the windows of which the
	// report shows the lowest.
	timelineWidth = 100 * time.Millisecond
	// lowPart is the part of the steady throughput below which users notice.
	lowPart = 0.8
	// steadyPart is the part of the steady throughput at which a cold start is over.
	steadyPart = 0.9
)

// timeline is the course of a run over its measured time, in bins of timelineWidth, as the JSON
// shows it.
type timeline struct {
	Operations []int64   `json:"operations"`
	Backends   []float64 `json:"backends"`             // the mean of each bin; -1: no sample
	OnTheirWay []float64 `json:"on_their_way"`         // permits held, less backends; as above
	Changes    []float64 `json:"changes_ms,omitempty"` // when the fleet was due to change
}

// sumBins adds the bins of all processes and merges neighbours into bins of the given width. It
// leaves out a shorter rest.
func sumBins(processes [][]int64, from, width time.Duration) []int64 {
	per := max(1, int(width/from))
	longest := 0
	for _, bins := range processes {
		longest = max(longest, len(bins))
	}
	sums := make([]int64, longest/per)
	for _, bins := range processes {
		for i, n := range bins {
			if i/per < len(sums) {
				sums[i/per] += n
			}
		}
	}
	return sums
}

// meanOf returns the mean of bins, or 0 of none.
func meanOf(bins []int64) float64 {
	if len(bins) == 0 {
		return 0
	}
	var sum int64
	for _, n := range bins {
		sum += n
	}
	return float64(sum) / float64(len(bins))
}

// lowestOf returns the least of bins, or 0 of none.
func lowestOf(bins []int64) int64 {
	if len(bins) == 0 {
		return 0
	}
	lowest := bins[0]
	for _, n := range bins {
		lowest = min(lowest, n)
	}
	return lowest
}

// longestBelow returns the length of the longest run of consecutive bins below the bound.
func longestBelow(bins []int64, bound float64, width time.Duration) time.Duration {
	longest, run := 0, 0
	for _, n := range bins {
		if float64(n) < bound {
			run++
		} else {
			run = 0
		}
		longest = max(longest, run)
	}
	return time.Duration(longest) * width
}

// timeToSteady returns when throughput first reached a part of steady, which is in operations per
// bin. It is the end of the first window of the given length, in bins of width, with enough
// operations. Without such a window it is the whole time.
func timeToSteady(bins []int64, steady, part float64, width, window time.Duration) time.Duration {
	n := max(1, int(window/width))
	var sum int64
	for i, ops := range bins {
		sum += ops
		if i >= n {
			sum -= bins[i-n]
		}
		if i >= n-1 && float64(sum) >= part*steady*float64(n) {
			return time.Duration(i+1) * width
		}
	}
	return time.Duration(len(bins)) * width
}

// meanSamples returns the mean of the values between from and from + n bins, by bin, or -1 in a bin
// without a value.
func meanSamples(n int, from time.Duration, samples []heldSample) []float64 {
	sums, counts := make([]float64, n), make([]int, n)
	for _, s := range samples {
		if i := int((s.at - from) / timelineWidth); s.at >= from && i < n {
			sums[i] += float64(s.held)
			counts[i]++
		}
	}
	for i := range sums {
		if counts[i] == 0 {
			sums[i] = -1
		} else {
			sums[i] /= float64(counts[i])
		}
	}
	return sums
}

// newTimeline joins the samples and the bins. Samples count from the start, bins from the end of
// the warm-up. Without samples of held permits it leaves out OnTheirWay.
func newTimeline(
	ops []int64, warmup time.Duration, open []backends.Sample, held []heldSample,
	changes []time.Duration,
) *timeline {
	var counts []heldSample
	for _, s := range open {
		counts = append(counts, heldSample{s.At, s.Open})
	}
	t := &timeline{Operations: ops, Backends: meanSamples(len(ops), warmup, counts)}
	for _, at := range changes {
		t.Changes = append(t.Changes, milliseconds(at))
	}
	if len(held) == 0 {
		return t
	}
	t.OnTheirWay = meanSamples(len(ops), warmup, held)
	for i := range t.OnTheirWay {
		if t.OnTheirWay[i] >= 0 && t.Backends[i] >= 0 {
			// The two counts are not of one instant, so a difference below 0 comes from the
			// counting and means no permit.
			t.OnTheirWay[i] = math.Max(0, t.OnTheirWay[i]-t.Backends[i])
		} else {
			t.OnTheirWay[i] = -1
		}
	}
	return t
}

// addChange computes how the changes affected the fleet's throughput. The first change was at
// first.
func (m *measurement) addChange(ops []int64, first time.Duration) {
	at := min(int(first/timelineWidth), len(ops))
	perSecond := float64(time.Second / timelineWidth)
	steady, rest := meanOf(ops[:at]), ops[at:]
	m.Values[steadyOps] = steady * perSecond
	m.Values[lowestOps] = float64(lowestOf(rest)) * perSecond
	if steady > 0 {
		m.Values[lowestToSteady] = float64(lowestOf(rest)) / steady
	}
	m.Values[longestLow] = milliseconds(longestBelow(rest, lowPart*steady, timelineWidth))
}

// addColdStart computes how fast a fleet started: fine holds its operations in bins of width, from
// the start of the load.
func (m *measurement) addColdStart(fine []int64, width time.Duration) {
	second := min(int(time.Second/width), len(fine))
	steady := meanOf(fine[len(fine)-len(fine)/3:])
	m.Values[firstSecondOps] = meanOf(fine[:second]) * float64(second)
	m.Values[steadyOps] = steady * float64(time.Second/width)
	took := timeToSteady(fine, steady, steadyPart, width, timelineWidth)
	m.Values[timeToSteadyMs] = milliseconds(took)
}
