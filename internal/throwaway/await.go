package throwaway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	pollInterval = 10 * time.Millisecond
	// adminTimeout bounds one question to one server, while others are asked too.
	adminTimeout = time.Second
)

// await polls until check returns "". Otherwise check returns what is still missing. The wait
// ends with ctx, or after 60 s.
func await(ctx context.Context, what string, check func(context.Context) string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	amiss := "never looked"
	for {
		now := check(ctx)
		if now == "" {
			return nil
		}
		if ctx.Err() == nil { // Otherwise the error says no more than that ctx ended.
			amiss = now
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("throwaway: %s: %w; at last: %s", what, ctx.Err(), amiss)
		case <-tick.C:
		}
	}
}

// together runs do for all items at once and returns all errors.
func together[T any](items []T, do func(int, T) error) error {
	errs := make([]error, len(items))
	var running sync.WaitGroup
	for i, item := range items {
		running.Go(func() { errs[i] = do(i, item) })
	}
	running.Wait()
	return errors.Join(errs...)
}
