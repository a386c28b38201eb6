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

// lingerLeast is twice the 99th percentile of what a backend took from Terminate to its end, on a busy machine of two cores.
const lingerLeast = 20 * time.Millisecond

const lingerMost = 2 * time.Second

// took notes how long a connect took. That is several round trips and the start of a process; ending one is half a round
// trip and less work. So on a slow network or a loaded server, what is slow for one is slow for the other.
func (l *linger) took(d time.Duration) {
	l.mu.Lock()
	l.recent = max(d, l.recent*7/8)
	l.mu.Unlock()
}

func (l *linger) duration() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(lingerLeast+2*l.recent, lingerMost)
}
