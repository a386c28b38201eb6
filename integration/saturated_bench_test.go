package integration

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The cost of the queue in one process. 50 goroutines share five connections, in a bare pool of
// that size and in PassBuddy's pool at a capacity of five. There is no other process, so the fleet
// costs nothing.
func BenchmarkSaturated(b *testing.B) {
	const goroutines, capacity = 50, 5
	s := startServers(b, capacity+10)
	for _, kind := range kinds {
		b.Run(kind+"/bare", func(b *testing.B) {
			use, _, end := s.idlePool(b, kind, nil, nil, capacity)
			defer end()
			contend(b, goroutines, use)
		})
		b.Run(kind+"/passbuddy", func(b *testing.B) {
			sem, err := semaphore.Open(b.Context(), s.redis.URL(), semaphore.Config{Name: b.Name(),
				Capacity: capacity})
			if err != nil {
				b.Fatal(err)
			}
			defer sem.Close()
			use, _, end := s.idlePool(b, kind, sem, &passbuddy.Config{}, goroutines)
			defer end()
			contend(b, goroutines, use)
		})
	}
}

// contend lets the goroutines do b.N queries together.
func contend(b *testing.B, goroutines int, use checkOut) {
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := use(ctx, func() {}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}
