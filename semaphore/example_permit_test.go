package semaphore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

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
