package semaphore

import "github.com/passbuddy/passbuddy/internal/core"

// The errors of this package, to be matched with errors.Is. Each is returned wrapped around its
// cause.
var (
	// ErrCapacity: no permit became free for as long as the caller could wait.
	ErrCapacity = core.ErrCapacity
	// ErrUnavailable: Redis could not be asked.
	ErrUnavailable = core.ErrUnavailable
	// ErrLost: the lease of the permit could no longer be proven while it was in use.
	ErrLost = core.ErrLost
	// ErrClosed: the semaphore was closed.
	ErrClosed = core.ErrClosed
)
