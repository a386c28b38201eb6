package fleet

import (
	"slices"
	"testing"
	"time"
)

func testWindow(length time.Duration) *window {
	from := time.Now()
	// without the monotonic clock, as in JSON
	return newWindow(Span{From: from.Round(0), Until: from.Add(length).Round(0)})
}

func TestWindowCountsWhatEndsInIt(t *testing.T) {
	w := testWindow(200 * time.Millisecond)
	for offset, want := range map[time.Duration]bool{
		-time.Nanosecond: false, 0: true, 199 * time.Millisecond: true,
		200 * time.Millisecond: false,
	} {
		if got := w.contains(w.from.Add(offset)); got != want {
			t.Errorf("%v after its begin: contained %v, want %v", offset, got, want)
		}
	}
}

func TestWindowBinsAndGap(t *testing.T) {
	w := testWindow(220 * time.Millisecond) // four bins and a part of one
	for _, ms := range []int{1, 49, 50, 130, 219} {
		w.note(w.from.Add(time.Duration(ms) * time.Millisecond))
	}
	p := w.progress()
	if want := []int64{2, 1, 1, 0, 1}; !slices.Equal(p.Bins, want) {
		t.Errorf("bins %v, want %v", p.Bins, want)
	}
	if p.Gap != 89*time.Millisecond {
		t.Errorf("gap %v, want 89ms", p.Gap)
	}
}

func TestGapReachesToTheEdges(t *testing.T) {
	w := testWindow(time.Second)
	if got := w.progress().Gap; got.Round(time.Millisecond) != time.Second {
		t.Errorf("without an operation the gap is %v, want all of the window", got)
	}
	w.note(w.from.Add(300 * time.Millisecond))
	if got := w.progress().Gap; got.Round(time.Millisecond) != 700*time.Millisecond {
		t.Errorf("after the only operation: gap %v, want 700ms", got)
	}
	w = testWindow(time.Second)
	w.note(w.from.Add(900 * time.Millisecond))
	if got := w.progress().Gap; got.Round(time.Millisecond) != 900*time.Millisecond {
		t.Errorf("before the only operation: gap %v, want 900ms", got)
	}
}

func TestRunWithoutEndHasNoProgress(t *testing.T) {
	w := newWindow(Span{})
	w.note(time.Now())
	if !w.contains(time.Now().Add(time.Hour)) || w.progress().Bins != nil {
		t.Error("a run without an end has no window")
	}
}

// An operation that never ended counts once in the percentiles, with the time that it lasted. One
// that began after the end does not count.
func TestUnfinishedOperationsAreRecorded(t *testing.T) {
	w := &worker{wait: NewLatency(), total: NewLatency(), window: testWindow(time.Second)}
	from, until := w.window.from, w.window.until
	// waiting for a connection
	w.unfinished(from.Add(400*time.Millisecond), time.Time{})
	w.unfinished(from.Add(400*time.Millisecond), from.Add(500*time.Millisecond)) // in its query
	w.unfinished(until.Add(time.Millisecond), time.Time{})
	if w.total.Count() != 2 || w.wait.Count() != 2 {
		t.Fatalf("%d operations and %d waits, want 2", w.total.Count(), w.wait.Count())
	}
	if got := w.total.Percentile(1).Round(10 * time.Millisecond); got != 600*time.Millisecond {
		t.Errorf("operations took %v, want 600ms", got)
	}
	if got := w.wait.Percentile(1).Round(10 * time.Millisecond); got != 100*time.Millisecond {
		t.Errorf("the shorter wait is %v, want 100ms", got)
	}
}
