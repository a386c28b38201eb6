package passbuddytest_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/passbuddytest"
	"github.com/passbuddy/passbuddy/semaphore"
)

// In a test, t is the test's. These examples have a stand-in for it.
func Example() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{Capacity: 1})
	web, batch := f.Semaphore(t), f.Semaphore(t) // two processes

	p, err := web.Acquire(context.Background())
	fmt.Println("web:", err)
	_, err = batch.TryAcquire(context.Background())
	fmt.Println("batch is at capacity:", errors.Is(err, semaphore.ErrCapacity))
	_ = p.Release(context.Background())

	f.RequireNoLeak(t)
	// Output:
	// web: <nil>
	// batch is at capacity: true
}

func ExampleNew() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{
		Name: "orders", Capacity: 20, Weight: 3, TTL: time.Second,
	})
	fmt.Println(f.Semaphore(t).Stats().Capacity)
	// Output: 20
}

func ExampleFleet_Semaphore() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	fmt.Println(f.Semaphore(t).Stats().Owner)
	fmt.Println(f.Semaphore(t).Stats().Owner)
	// Output:
	// process 1
	// process 2
}

// Code that opens its own semaphore is given a client, and the Name of the fleet.
func ExampleFleet_Client() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{Name: "orders", Capacity: 2})
	sem, err := semaphore.New(context.Background(), f.Client(t), semaphore.Config{
		Name: "orders", Capacity: 2, Weight: 3,
	})
	fmt.Println(err)
	fmt.Println(sem.Close())
	f.RequireNoLeak(t)
	// Output:
	// <nil>
	// <nil>
}

// Code that reads the URL of Redis from its environment is given one: t.Setenv("REDIS_URL", ...).
func ExampleFleet_URL() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{Name: "orders"})
	sem, err := semaphore.Open(context.Background(), f.URL(t), semaphore.Config{Name: "orders"})
	fmt.Println(err)
	fmt.Println(sem.Close())
	// Output:
	// <nil>
	// <nil>
}

func ExampleFleet_Exhaust() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{Capacity: 2})
	sem := f.Semaphore(t)

	release := f.Exhaust(t)
	_, err := sem.TryAcquire(context.Background())
	fmt.Println(errors.Is(err, semaphore.ErrCapacity))
	release()
	_, err = sem.TryAcquire(context.Background())
	fmt.Println(err)
	// Output:
	// true
	// <nil>
}

// An outage that is shorter than nine tenths of the lease costs no permit.
func ExampleFleet_Down() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	sem := f.Semaphore(t)
	p, _ := sem.Acquire(context.Background())

	f.Down(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := sem.Acquire(ctx)
	fmt.Println(errors.Is(err, semaphore.ErrUnavailable), p.Held())
	f.Up(t)
	_, err = sem.Acquire(context.Background())
	fmt.Println(err, p.Held())
	// Output:
	// true true
	// <nil> true
}

// Up returns once the sessions have heard from Redis.
func ExampleFleet_Up() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	sem := f.Semaphore(t)
	f.Down(t)
	f.Up(t)
	fmt.Println(sem.Stats().Up)
	// Output: true
}

// A round trip takes at least that long. In a synctest bubble it takes exactly that long.
func ExampleFleet_Delay() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	sem := f.Semaphore(t)
	f.Delay(10 * time.Millisecond)
	began := time.Now()
	_, err := sem.Acquire(context.Background())
	fmt.Println(err, time.Since(began) >= 10*time.Millisecond)
	// Output: <nil> true
}

// Redis comes back empty. The holder tells it of its permit again.
func ExampleFleet_Flush() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	p, _ := f.Semaphore(t).Acquire(context.Background())
	f.Flush(t)
	f.RequireHeld(t, 1)
	fmt.Println(p.Held())
	// Output: true
}

func ExampleFleet_ExpireLeases() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	err := f.Semaphore(t).NewPermit().Do(context.Background(), func(ctx context.Context) error {
		f.ExpireLeases(t)
		<-ctx.Done()
		return ctx.Err()
	})
	fmt.Println(errors.Is(err, semaphore.ErrLost))
	// Output: true
}

// One process was stopped for too long; the others go on.
func ExampleFleet_Expire() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	stopped, other := f.Semaphore(t), f.Semaphore(t)
	p, _ := stopped.Acquire(context.Background())
	q, _ := other.Acquire(context.Background())

	f.Expire(t, stopped)
	fmt.Println(p.Held(), q.Held())
	// Output: false true
}

func ExampleFleet_RequireHeld() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	sem := f.Semaphore(t)
	go func() { _, _ = sem.AcquireN(context.Background(), 3) }()
	f.RequireHeld(t, 3) // waits for it
	// Output:
}

func ExampleFleet_RequireNoLeak() {
	t := new(fakeT)
	defer t.end()

	f := passbuddytest.New(t, passbuddytest.Config{})
	p, _ := f.Semaphore(t).Acquire(context.Background())
	time.AfterFunc(10*time.Millisecond, func() { _ = p.Release(context.Background()) })
	f.RequireNoLeak(t) // waits for it
	// Output:
}
