package semaphore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
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

// Acquire extends the lease of a permit that is held, and acquires one that is not.
func ExamplePermit_Acquire() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "again", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	p := sem.NewPermit()
	defer p.Release(ctx)
	switch err := p.Acquire(ctx); {
	case errors.Is(err, semaphore.ErrCapacity):
		fmt.Println("nothing was free for as long as this waits")
	case errors.Is(err, semaphore.ErrUnavailable):
		fmt.Println("Redis did not answer")
	case errors.Is(err, semaphore.ErrLost):
		fmt.Println("it was held, and Redis does not know it any more")
	case err == nil:
		fmt.Println("held")
	}
	// Output: held
}

// A held permit is used without a round trip.
func ExamplePermit_Use() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "use", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	p := sem.NewPermit()
	defer p.Release(ctx)
	for range 3 {
		if err := p.Use(ctx); err != nil { // only the first one asks Redis
			log.Fatal(err)
		}
	}
	fmt.Println("held:", p.Held())
	// Output: held: true
}

// Release outlives the context of its caller.
func ExamplePermit_Release() {
	ctx, cancel := context.WithCancel(context.Background())
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "release", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()
	p, err := sem.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}

	cancel()
	if err := p.Release(ctx); err != nil {
		// Redis has not confirmed the release yet; the session retries it in the background
		log.Print(err)
	}
	fmt.Println("held:", p.Held())
	// Output: held: false
}

// Work that cannot take a context checks whether its lease can still be proven.
func ExamplePermit_Held() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "held", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()
	p, err := sem.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Release(ctx)

	for step := range 2 {
		if !p.Held() {
			log.Fatal("the lease was lost: another process may hold the permit soon")
		}
		fmt.Println("step", step)
	}
	// Output:
	// step 0
	// step 1
}

// Work that takes long stops when the lease is lost.
func ExamplePermit_Lost() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "lost", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()
	p, err := sem.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Release(ctx)

	work := time.After(10 * time.Millisecond)
	select {
	case <-work:
		fmt.Println("done")
	case <-p.Lost():
		fmt.Println("stopped")
	}
	// Output: done
}

// The ID is a UUID, and a member of the sorted set that clients of the original library share.
func ExamplePermit_ID() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "id", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()
	p, err := sem.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Release(ctx)

	members, err := sem.Client().ZRange(ctx, "passbuddy-id", 0, -1).Result()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(members) == 1 && members[0] == p.ID())
	// Output: true
}

// Do acquires the permit, runs the function and releases the permit.
func ExamplePermit_Do() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "do", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	err = sem.NewPermit().Do(ctx, func(ctx context.Context) error {
		select {
		case <-time.After(10 * time.Millisecond):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx) // ErrLost if the lease was lost
		}
	})
	fmt.Println("error:", err)
	// Output: error: <nil>
}

// Requests share one permit. If no permit is free, the handler answers with 503.
func ExamplePermit_Handler() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "handler", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "hello") // r.Context() ends if the lease is lost
	})
	h := sem.NewPermit().Handler(hello, semaphore.HandlerOptions{AcquireOnStart: true})

	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, httptest.NewRequest("GET", "/", nil))
	fmt.Println(answer.Code, answer.Body)
	// Output: 200 hello
}

// A function keeps its signature, and runs with the permit.
func ExampleBind() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "bind", Capacity: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	p := sem.NewPermit()
	double := semaphore.Bind(p, func(_ context.Context, n int) (int, error) {
		return 2 * n, nil
	}, semaphore.BindOptions{KeepOnEnd: true})

	for _, n := range []int{1, 21} {
		got, err := double(ctx, n) // the second call costs no round trip
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(got)
	}
	if err := p.Release(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 2
	// 42
}
