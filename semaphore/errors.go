package semaphore

import (
	"context"
	"errors"
	"fmt"
)

// The errors of this package, to be matched with errors.Is. Each is returned wrapped around its cause.
var (
	// ErrCapacity: no permit became free for as long as the caller could wait.
	ErrCapacity = errors.New("semaphore: at capacity")
	// ErrUnavailable: Redis could not be asked.
	ErrUnavailable = errors.New("semaphore: Redis is unavailable")
	// ErrLost: the lease of the permit could no longer be proven while it was in use.
	ErrLost = errors.New("semaphore: lease lost")
	// ErrClosed: the semaphore was closed.
	ErrClosed = errors.New("semaphore: closed")
)

func unavailable(cause error) error { return fmt.Errorf("%w: %w", ErrUnavailable, cause) }

// giveUp adds to reason why the caller stopped waiting. Both the context's error and its cause can be matched.
func giveUp(ctx context.Context, reason error) error {
	err := ctx.Err()
	if err == nil {
		return reason
	}
	if cause := context.Cause(ctx); !errors.Is(cause, err) {
		return fmt.Errorf("%w (%w: %w)", reason, err, cause)
	}
	return fmt.Errorf("%w (%w)", reason, err)
}
