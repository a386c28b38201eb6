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
	adminTimeout = time.Second // for one question to one server, while others are asked too
)

// await polls until check finds nothing amiss; its answer is what still is. ctx bounds it, and 60
// s.
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
		if ctx.Err() == nil { // else it says no more than that
			amiss = now
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("throwaway: %s: %w; at last: %s", what, ctx.Err(), amiss)
		case <-tick.C:
		}
	}
}

// together runs do for each of items at once and returns all errors.
func together[T any](items []T, do func(int, T) error) error {
	errs := make([]error, len(items))
	var running sync.WaitGroup
	for i, item := range items {
		running.Go(func() { errs[i] = do(i, item) })
	}
	running.Wait()
	return errors.Join(errs...)
}
