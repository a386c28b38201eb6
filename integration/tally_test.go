package integration

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// outcome is the report of a worker at its end.
type outcome struct {
	Ops, Failed, Expected int           // Expected: failures that the fault causes
	Longest               time.Duration // of all checkouts that succeeded
	Errors                []string
	// the wait of the first operation: all goroutines began with the greeting
	First time.Duration
	Left  time.Time // when its session had ended

	// The figures from the command count to the command end.
	P50, P99 time.Duration // of the waits for a checkout
	Gap      time.Duration // the longest time without an operation that succeeded
	Windows  []int         // operations in each quarter of a second

	// For a process in a chaos run: the goroutines that outlived everything it opened, and their
	// stacks.
	Goroutines int
	Stacks     string
}

const quarter = 250 * time.Millisecond

// A tally counts the operations of a worker's goroutines.
type tally struct {
	mu sync.Mutex

	// Guarded by mu.
	outcome
	from  time.Time // when counting began, if not zero
	ended time.Time
	last  time.Time // when an operation last succeeded
	waits []time.Duration
}

func (c *tally) begin() {
	c.mu.Lock()
	c.from = time.Now()
	c.last = c.from
	c.mu.Unlock()
}

func (c *tally) end() {
	c.mu.Lock()
	c.ended = time.Now()
	c.mu.Unlock()
}

// add counts an operation that has just ended.
func (c *tally) add(waited time.Duration, err error, expected bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Longest = max(c.Longest, waited)
	switch {
	case err == nil:
		c.Ops++
		c.succeeded(now, waited)
	case expected:
		c.Expected++
	default:
		c.Failed++
		if len(c.Errors) < 5 {
			c.Errors = append(c.Errors, err.Error())
		}
	}
}

func (c *tally) succeeded(now time.Time, waited time.Duration) {
	if c.Ops == 1 {
		c.First = waited
	}
	if c.from.IsZero() || !c.ended.IsZero() {
		return
	}
	c.waits = append(c.waits, waited)
	c.Gap = max(c.Gap, now.Sub(c.last))
	c.last = now
	c.window(now)
	c.Windows[len(c.Windows)-1]++
}

// window adds the windows up to the current one.
func (c *tally) window(now time.Time) {
	for n := int(now.Sub(c.from)/quarter) + 1; len(c.Windows) < n; {
		c.Windows = append(c.Windows, 0)
	}
}

// sofar returns the operations until now.
func (c *tally) sofar() outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	return outcome{Ops: c.Ops, Failed: c.Failed, Expected: c.Expected}
}

// report ends the tally.
func (c *tally) report() outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Left = time.Now()
	if c.from.IsZero() || c.ended.IsZero() {
		return c.outcome
	}
	c.Gap = max(c.Gap, c.ended.Sub(c.last))
	c.window(c.ended)
	c.Windows = c.Windows[:len(c.Windows)-1] // the last one is incomplete
	c.P50, c.P99 = quantile(c.waits, 0.5), quantile(c.waits, 0.99)
	return c.outcome
}

// quantile sorts of and returns its q-th quantile, 0 if there are none.
func quantile[T cmp.Ordered](of []T, q float64) (found T) {
	if len(of) == 0 {
		return found
	}
	slices.Sort(of)
	return of[int(q*float64(len(of)-1))]
}

// fewest returns the least number of operations in any stretch of a length.
func (o outcome) fewest(stretch time.Duration) int {
	n := int(stretch / quarter)
	least := -1
	for from := 0; from+n <= len(o.Windows); from++ {
		if ops := sum(o.Windows[from : from+n]); least < 0 || ops < least {
			least = ops
		}
	}
	return max(least, 0)
}

func sum(of []int) (total int) {
	for _, n := range of {
		total += n
	}
	return total
}
