package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// longestLatency is recorded for whatever took longer.
const longestLatency = 2 * time.Minute

// latency is a histogram of durations, exact to 1 in 1,000. Safe for concurrent use.
type latency struct {
	mu        sync.Mutex
	histogram *hdrhistogram.Histogram // in microseconds
}

func newLatency() *latency {
	return &latency{histogram: hdrhistogram.New(1, longestLatency.Microseconds(), 3)}
}

func (l *latency) record(d time.Duration) {
	us := min(max(d.Microseconds(), 1), longestLatency.Microseconds())
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.histogram.RecordValue(us); err != nil {
		panic("bug: " + err.Error()) // us was brought into its range
	}
}

func (l *latency) encode() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.histogram.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
}

// merge adds what encode made of another latency.
func (l *latency) merge(encoded []byte) error {
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

func (l *latency) count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.histogram.TotalCount()
}

// percentile returns the duration that p percent of the recorded ones do not exceed; 0 when there are none.
func (l *latency) percentile(p float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.histogram.ValueAtPercentile(p)) * time.Microsecond
}
