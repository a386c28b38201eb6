package allotment

import (
	"fmt"
	"time"
)

// A caller that holds one connection and asks for another can wait for itself, or for its peers in
// other processes that do the same: an advisory lock is held on the first, and the work is done
// over the second. Nothing here can end that wait but AcquireTimeout. Then the error names the
// likely cause, for a caller who sees "at capacity" would look for the others.
//
// The sign of it is that no checkout of this pool ended for as long as the caller waited. So
// returns counts the ends of checkouts. Keep does not count: it is refused while anybody waits.

// nestedAfter is how long a caller has waited at least before its error speaks of nested checkouts:
// shorter waits are ordinary.
const nestedAfter = time.Second

// explainNested adds to err, with which a caller is refused that waited for so long, and during
// whose wait no checkout of this pool ended, what that may mean. The lock is held.
func (a *Allotment) explainNested(err error, waited time.Duration) error {
	n := a.conns[out]
	if n == 0 || waited < min(nestedAfter, a.opts.AcquireTimeout) {
		return err
	}
	return fmt.Errorf("%w; none of the %d connections that this pool has checked out came back in the %v of the wait: "+
		"callers that hold one while they ask for another (a migration under an advisory lock, a query beside a transaction) "+
		"wait for each other. Do that work over the one connection, keep two permits for each process (semaphore.Config.Min: 2), "+
		"or give it a semaphore and a pool of its own; see Nested checkouts in README.md", err, n, waited.Round(time.Millisecond))
}
