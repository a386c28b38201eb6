package fleet

import (
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// LongestLatency is the longest latency that Record keeps; longer ones are recorded as this.
const LongestLatency = 2 * time.Minute

// Latency is a histogram of durations, exact to 1 in 1,000. Safe for concurrent use.
type Latency struct {
	mu        sync.Mutex
	histogram *hdrhistogram.Histogram // in microseconds
}

// NewLatency returns an empty Latency.
func NewLatency() *Latency {
	return &Latency{histogram: hdrhistogram.New(1, LongestLatency.Microseconds(), 3)}
}

// Record adds d.
func (l *Latency) Record(d time.Duration) {
	us := min(max(d.Microseconds(), 1), LongestLatency.Microseconds())
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.histogram.RecordValue(us); err != nil {
		panic("bug: " + err.Error()) // us is within the histogram's range
	}
}

// Encode returns l in a form for a Report.
func (l *Latency) Encode() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.histogram.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
}

// Merge adds another Latency, which Encode has encoded.
func (l *Latency) Merge(encoded []byte) error {
	if len(encoded) == 0 {
		return nil
	}
	other, err := hdrhistogram.Decode(encoded)
	if err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if dropped := l.histogram.Merge(other); dropped > 0 {
		return fmt.Errorf("latency: %d values out of range", dropped)
	}
	return nil
}

// Count returns the number of recorded durations.
func (l *Latency) Count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.histogram.TotalCount()
}

// Percentile returns the duration that p percent of the recorded ones do not exceed, or 0 if there
// are none.
func (l *Latency) Percentile(p float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.histogram.ValueAtPercentile(p)) * time.Microsecond
}
