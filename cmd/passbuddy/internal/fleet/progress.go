package fleet

import "time"

// BinWidth is the resolution of a Progress, unless its Span says otherwise, and of Connects.
const BinWidth = 50 * time.Millisecond

// Progress shows how evenly a worker's operations succeeded over the part of the run that counts.
type Progress struct {
	Bins []int64       `json:",omitempty"` // operations that succeeded, by when they ended
	Gap  time.Duration `json:",omitempty"` // the longest time without one
}

// window is the part of a run that counts. Its times are on the monotonic clock.
type window struct {
	begin       time.Time // when the load begins
	from, until time.Time // until is zero for a run without an end
	width       time.Duration

	bins []int64
	last time.Time // when the last operation ended, or the window began
	gap  time.Duration
}

func newWindow(s Span) *window {
	now := time.Now()
	if s.Until.IsZero() {
		return &window{begin: now, from: now, last: now}
	}
	// The times came over the pipe, so they are wall-clock times, and that clock may be set while
	// we run.
	w := &window{begin: now, from: now.Add(s.From.Sub(now)), until: now.Add(s.Until.Sub(now)),
		width: s.BinWidth}
	if !s.Begin.IsZero() {
		w.begin = now.Add(s.Begin.Sub(now))
	}
	if w.width <= 0 {
		w.width = BinWidth
	}
	w.last = w.from
	w.bins = make([]int64, (w.until.Sub(w.from)+w.width-1)/w.width)
	return w
}

func (w *window) ends() bool { return !w.until.IsZero() }

func (w *window) contains(t time.Time) bool {
	return !t.Before(w.from) && (!w.ends() || t.Before(w.until))
}

// note counts an operation that ended at t, within the window. Concurrent operations may arrive
// here some microseconds out of order.
func (w *window) note(t time.Time) {
	if !w.ends() {
		return
	}
	w.bins[t.Sub(w.from)/w.width]++
	w.gap = max(w.gap, t.Sub(w.last))
	w.last = t
}

func (w *window) progress() Progress {
	if !w.ends() {
		return Progress{}
	}
	return Progress{Bins: w.bins, Gap: max(w.gap, w.until.Sub(w.last))}
}
