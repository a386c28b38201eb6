package fleet

import (
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// LongestLatency is recorded for whatever took longer.
const LongestLatency = 2 * time.Minute

// Latency is a histogram of durations, exact to 1 in 1,000. Safe for concurrent use.
type Latency struct {
	mu        sync.Mutex
	histogram *hdrhistogram.Histogram // in microseconds
}

// NewLatency returns an empty one.
func NewLatency() *Latency {
	return &Latency{histogram: hdrhistogram.New(1, LongestLatency.Microseconds(), 3)}
}

// Record adds d.
func (l *Latency) Record(d time.Duration) {
	us := min(max(d.Microseconds(), 1), LongestLatency.Microseconds())
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.histogram.RecordValue(us); err != nil {
		panic("bug: " + err.Error()) // us was brought into its range
	}
}

// Encode makes it fit for a Report.
func (l *Latency) Encode() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.histogram.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
}

// Merge adds what Encode made of another Latency.
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

// Count is how many were recorded.
func (l *Latency) Count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.histogram.TotalCount()
}

// Percentile returns the duration that p percent of the recorded ones do not exceed; 0 when there are none.
func (l *Latency) Percentile(p float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.histogram.ValueAtPercentile(p)) * time.Microsecond
}
