package page

import (
	"time"

	"github.com/passbuddy/passbuddy/internal/status"
)

const (
	// historySpan and historyMost bound the past that a new viewer is given.
	historySpan = 15 * time.Minute
	historyMost = 1000
)

// A sample is one point of the charts.
type sample struct {
	at         time.Time // Redis's clock
	capacity   int
	held       int
	inUse      int
	callers    int
	oldestWait float64 // seconds
	timeouts   int64   // of all live pools since they were made
}

func sampleOf(d status.Document) sample {
	return sample{
		at: d.At, capacity: d.Capacity.InForce, held: d.Held, inUse: d.InUse, callers: d.Callers,
		oldestWait: d.OldestWaitSeconds, timeouts: d.Timeouts,
	}
}

// A history holds the samples of the last minutes, the oldest first. There is none of the time in
// which nobody looked.
type history struct{ samples []sample }

func (h *history) add(s sample) {
	if n := len(h.samples); n > 0 && s.at.Before(h.samples[n-1].at) {
		h.samples = nil // Redis's clock was set back, or another Redis answers: begin again
	}
	h.samples = append(h.samples, s)
	old := 0
	for old < len(h.samples) && (s.at.Sub(h.samples[old].at) > historySpan ||
		len(h.samples)-old > historyMost) {
		old++
	}
	h.samples = append(h.samples[:0], h.samples[old:]...)
}

// columns are the samples as the page's charts take them: one list for each figure.
type columns struct {
	At         []float64 `json:"at"` // seconds since 1970
	Capacity   []int     `json:"capacity"`
	Held       []int     `json:"held"`
	InUse      []int     `json:"in_use"`
	Callers    []int     `json:"callers"`
	OldestWait []float64 `json:"oldest_wait_seconds"`
	Timeouts   []int64   `json:"timeouts"`
}

func (h *history) columns() columns {
	n := len(h.samples)
	c := columns{
		At: make([]float64, n), Capacity: make([]int, n), Held: make([]int, n),
		InUse: make([]int, n), Callers: make([]int, n), OldestWait: make([]float64, n),
		Timeouts: make([]int64, n),
	}
	for i, s := range h.samples {
		c.At[i] = float64(s.at.UnixMilli()) / 1000
		c.Capacity[i], c.Held[i], c.InUse[i] = s.capacity, s.held, s.inUse
		c.Callers[i], c.OldestWait[i], c.Timeouts[i] = s.callers, s.oldestWait, s.timeouts
	}
	return c
}
