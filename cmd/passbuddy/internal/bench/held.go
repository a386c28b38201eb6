package bench

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/semaphore"
)

// heldSample is a count, of permits or of backends, at a time since the start of the run.
type heldSample struct {
	at   time.Duration
	held int
}

// sampleHeld counts the permits of the semaphore until the caller calls the returned function. That
// function returns the counts, or the error that ended the counting. A semaphore's permits are the
// members of the sorted set of its own name, as in the original.
func sampleHeld(
	ctx context.Context, client *redis.Client, name string, begin time.Time,
) (stop func() ([]heldSample, error)) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		samples []heldSample
		err     error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() { done <- r }()
		ticker := time.NewTicker(sampleInterval)
		defer ticker.Stop()
		for {
			n, err := client.ZCard(ctx, semaphore.DefaultPrefix+"-"+name).Result()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				r.err = err
				return
			}
			r.samples = append(r.samples, heldSample{time.Since(begin), int(n)})
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sync.OnceValues(func() ([]heldSample, error) {
		cancel()
		r := <-done
		return r.samples, r.err
	})
}
