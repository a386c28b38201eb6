package bubble

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"
)

// A Listener is an engine.Listener that records its calls. P is *engine.Permit; package engine
// tests itself, so this package cannot import it.
type Listener[P any] struct {
	Return func(P) // gives a permit back to the engine
	// Obey has the listener give back each recalled permit, even one that is granted only
	// afterwards: a recall can overtake its grant.
	Obey bool

	mu      sync.Mutex
	told    []string
	permits []P
	owed    int
}

func (l *Listener[P]) note(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, what)
}

// Told returns all calls so far, in order.
func (l *Listener[P]) Told() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.told, " ")
}

// Count returns how many calls of that kind there were so far.
func (l *Listener[P]) Count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, t := range l.told {
		if t == what {
			n++
		}
	}
	return n
}

// Heard returns Count once all goroutines of the bubble wait.
func (l *Listener[P]) Heard(what string) int {
	synctest.Wait()
	return l.Count(what)
}

// Permits returns the permits that l was granted and has not given back.
func (l *Listener[P]) Permits() []P {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.permits)
}

// GiveBack gives back the last of its permits, if it has one.
func (l *Listener[P]) GiveBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.permits); n > 0 {
		l.Return(l.permits[n-1])
		l.permits = l.permits[:n-1]
	}
}

// pay gives back the recalled permits, as far as l has them.
func (l *Listener[P]) pay() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ; l.owed > 0 && len(l.permits) > 0; l.owed-- {
		l.Return(l.permits[0])
		l.permits = l.permits[1:]
	}
}

// The methods of an engine.Listener.

func (l *Listener[P]) Granted(permits []P) {
	l.mu.Lock()
	l.permits = append(l.permits, permits...)
	l.told = append(l.told, "granted")
	l.mu.Unlock()
	l.pay()
}

func (l *Listener[P]) Recall(n int, _ time.Duration) {
	l.note("recall")
	if l.Obey {
		l.mu.Lock()
		l.owed += n
		l.mu.Unlock()
		l.pay()
	}
}

func (l *Listener[P]) Keep(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, "keep")
	l.owed -= min(n, l.owed)
}

func (l *Listener[P]) Wanted(yes bool) {
	if yes {
		l.note("wanted")
	} else {
		l.note("calm")
	}
}

func (l *Listener[P]) Promised(int) { l.note("promised") }
func (l *Listener[P]) Lost(P)       { l.note("lost") }
func (l *Listener[P]) Changed()     { l.note("changed") }

func (*Listener[P]) EndBackends(context.Context, []string) []bool  { return nil }
func (*Listener[P]) BackendsGone(context.Context, []string) []bool { return nil }

func (l *Listener[P]) Closed() {
	l.note("closed")
	for range 100 {
		l.GiveBack()
	}
}

func (l *Listener[P]) Owed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owed
}
