package proxy

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

// newLog returns the proxy's log, one line for each incident.
func newLog(w io.Writer, o Options) *slog.Logger {
	opts := &slog.HandlerOptions{Level: slog.LevelInfo}
	if o.Verbose {
		opts.Level = slog.LevelDebug
	}
	if o.JSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// refusalsEvery is how often the log has a line on refusals of one code.
const refusalsEvery = 10 * time.Second

// refusals counts those that the log has no line of yet, by code.
type refusals struct {
	mu     sync.Mutex
	logged map[string]time.Time
	n      map[string]int
}

// count counts one refusal, and returns how many the log is to tell of now, 0 if none.
func (r *refusals) count(code string, now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == nil {
		r.logged, r.n = make(map[string]time.Time), make(map[string]int)
	}
	r.n[code]++
	if now.Sub(r.logged[code]) < refusalsEvery {
		return 0
	}
	n := r.n[code]
	r.logged[code], r.n[code] = now, 0
	return n
}
