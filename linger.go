package passbuddy

import (
	"sync"
	"time"
)

// linger is how long a permit stays taken after the driver's Close, where nothing better tells that the backend is gone.
type linger struct {
	mu     sync.Mutex
	recent time.Duration // how long connecting took, the slowest of late
}

const (
	// lingerLeast is well above the 99th percentile (9ms) of what a backend took from Terminate to its end, on a busy machine of
	// two cores.
	lingerLeast = 15 * time.Millisecond
	lingerMost  = 2 * time.Second
)

// took notes how long a connect took. That is several round trips and the start of a process; ending one is half a round
// trip and less work. So what makes one slow, a long way or a loaded server, makes the other less slow.
func (l *linger) took(d time.Duration) {
	l.mu.Lock()
	l.recent = max(d, l.recent*7/8)
	l.mu.Unlock()
}

func (l *linger) duration() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(lingerLeast+l.recent, lingerMost)
}
