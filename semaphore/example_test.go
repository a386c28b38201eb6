package semaphore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/semaphore"
)

// redisURL returns the URL of a Redis that lives as long as this process, only for the examples.
var redisURL = sync.OnceValue(func() string {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	return "redis://" + m.Addr()
})

// Every process that opens the same name shares its capacity.
func Example() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "reports", Capacity: 3})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	err = sem.NewPermit().Do(ctx, func(ctx context.Context) error {
		fmt.Println("one of three, in the whole fleet")
		return nil // ctx ends if the lease is lost
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: one of three, in the whole fleet
}

// The application has a client of its own. The session takes its options, and opens its own
// connections.
func ExampleNew() {
	ctx := context.Background()
	opt, err := redis.ParseURL(redisURL())
	if err != nil {
		log.Fatal(err)
	}
	client := redis.NewClient(opt)
	defer client.Close()

	sem, err := semaphore.New(ctx, client, semaphore.Config{Name: "new", Capacity: 3})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	fmt.Println(sem.Client() == client)
	// Output: true
}

func ExampleOpen() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{
		Name:     "open",
		Capacity: 3,
		TTL:      10 * time.Second, // the permits of a crashed process are free after that
	})
	if errors.Is(err, semaphore.ErrUnavailable) {
		log.Fatal("Redis cannot be asked: ", err)
	}
	if err != nil {
		log.Fatal("a field of the Config is refused: ", err)
	}
	if err := sem.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
}

// Acquire waits in the queue of the whole fleet.
func ExampleSemaphore_Acquire() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "acquire", Capacity: 1,
		MaxAttempts: -1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	// MaxAttempts is below zero, so only ctx bounds the wait
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p, err := sem.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Release(ctx)

	fmt.Println("held:", p.Held())
	// Output: held: true
}

// TryAcquire never waits for a permit.
func ExampleSemaphore_TryAcquire() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "try", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	p, err := sem.TryAcquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Release(ctx)

	_, err = sem.TryAcquire(ctx)
	fmt.Println("at capacity:", errors.Is(err, semaphore.ErrCapacity))
	// Output: at capacity: true
}

// AcquireN gets all permits together, or none.
func ExampleSemaphore_AcquireN() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "together", Capacity: 5})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	permits, err := sem.AcquireN(ctx, 3)
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range permits {
		defer p.Release(ctx)
	}
	fmt.Println(len(permits), "permits")
	// Output: 3 permits
}

// A worker has one permit, and acquires it again for each job.
func ExampleSemaphore_NewPermit() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "worker", Capacity: 2})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	p := sem.NewPermit()
	for _, job := range []string{"first", "second"} {
		if err := p.Acquire(ctx); err != nil {
			log.Fatal(err)
		}
		fmt.Println(job, "job")
		if err := p.Release(ctx); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// first job
	// second job
}

// Client returns the application's client, or the one that Open has made.
func ExampleSemaphore_Client() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "client"})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close() // also closes the client

	if err := sem.Client().Set(ctx, "greeting", "hello", 0).Err(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(sem.Client().Get(ctx, "greeting").Val())
	// Output: hello
}

// An operator inspects the fleet.
func ExampleSemaphore_Snapshot() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "snapshot", Capacity: 3,
		Owner: "web-1"})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()
	p, err := sem.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Release(ctx)

	snap, err := sem.Snapshot(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d of %d permits are held, %d requests wait\n", snap.Held, snap.Capacity,
		len(snap.Waiters))
	for _, h := range snap.Holders {
		fmt.Println(h.Owner, "holds", len(h.Permits))
	}
	// Output:
	// 1 of 3 permits are held, 0 requests wait
	// web-1 holds 1
}

// An operator lowers the capacity of the whole fleet, then restores the capacity that the sessions
// declare.
func ExampleSemaphore_SetCapacity() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "capacity", Capacity: 20})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	for _, n := range []int{5, 0} { // 0 withdraws the operator's capacity
		if err := sem.SetCapacity(ctx, n); err != nil {
			log.Fatal(err)
		}
		snap, err := sem.Snapshot(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("capacity", snap.Capacity)
	}
	// Output:
	// capacity 5
	// capacity 20
}

// Close gives back the session's permits, and ends its waits.
func ExampleSemaphore_Close() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "close", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	p, err := sem.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if err := sem.Close(); err != nil {
		log.Print(err) // Redis did not answer: the permits are free when their leases expire
	}
	fmt.Println("held:", p.Held())
	_, err = sem.Acquire(ctx)
	fmt.Println("closed:", errors.Is(err, semaphore.ErrClosed))
	// Output:
	// held: false
	// closed: true
}
