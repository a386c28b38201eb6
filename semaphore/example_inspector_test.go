package semaphore_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/semaphore"
)

// inspect returns a session, and an inspector of its semaphore.
func inspect(ctx context.Context, name string) (*semaphore.Semaphore, *semaphore.Inspector) {
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{
		Name: name, Capacity: 3, Owner: "web-1",
	})
	if err != nil {
		log.Fatal(err)
	}
	inspector, err := semaphore.NewInspector(sem.Client(), "", name)
	if err != nil {
		log.Fatal(err)
	}
	inspector.Operator = "ann"
	return sem, inspector
}

// An inspector needs no session: the semaphore goes on as if it were not there.
func ExampleNewInspector() {
	ctx := context.Background()
	opt, err := redis.ParseURL(redisURL())
	if err != nil {
		log.Fatal(err)
	}
	client := redis.NewClient(opt)
	defer client.Close()

	inspector, err := semaphore.NewInspector(client, "", "nobody-yet")
	if err != nil {
		log.Fatal(err)
	}
	snap, err := inspector.Snapshot(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(snap.Sessions), "sessions")
	// Output: 0 sessions
}

func ExampleList() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Prefix: "listed", Name: "orders"})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()

	names, err := semaphore.List(ctx, sem.Client(), "listed")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(names)
	// Output: [orders]
}

func ExampleInspector_Snapshot() {
	ctx := context.Background()
	sem, inspector := inspect(ctx, "inspected")
	defer sem.Close()
	if _, err := sem.AcquireN(ctx, 2); err != nil {
		log.Fatal(err)
	}

	snap, err := inspector.Snapshot(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range snap.Sessions {
		fmt.Printf("%s holds %d of %d\n", s.Owner, s.Held, snap.Capacity)
	}
	// Output: web-1 holds 2 of 3
}

func ExampleInspector_SetCapacity() {
	ctx := context.Background()
	sem, inspector := inspect(ctx, "resized")
	defer sem.Close()

	if err := inspector.SetCapacity(ctx, 2); err != nil {
		log.Fatal(err)
	}
	snap, err := inspector.Snapshot(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(snap.Capacity, "set by", snap.CapacitySetBy)
	// Output: 2 set by ann
}

// A drain returns once nothing is held. If that takes too long, the fleet resumes by itself.
func ExampleInspector_Pause() {
	ctx := context.Background()
	sem, inspector := inspect(ctx, "paused")
	defer sem.Close()

	err := inspector.Pause(ctx, semaphore.PauseOptions{
		Drain: true, Timeout: 30 * time.Second, Reason: "switchover",
	})
	if err != nil {
		log.Fatal(err) // the fleet goes on
	}
	_, err = sem.TryAcquire(ctx)
	fmt.Println("granted:", err == nil, "at capacity:", errors.Is(err, semaphore.ErrCapacity))
	// Output: granted: false at capacity: true
}

func ExampleInspector_Resume() {
	ctx := context.Background()
	sem, inspector := inspect(ctx, "resumed")
	defer sem.Close()

	if err := inspector.Pause(ctx, semaphore.PauseOptions{For: time.Hour}); err != nil {
		log.Fatal(err)
	}
	if err := inspector.Resume(ctx); err != nil {
		log.Fatal(err)
	}
	_, err := sem.TryAcquire(ctx)
	fmt.Println("granted:", err == nil)
	// Output: granted: true
}

// By force, what a session does not give back in time is revoked: here a permit that no pool holds.
func ExampleInspector_Evict() {
	ctx := context.Background()
	sem, inspector := inspect(ctx, "evicted")
	defer sem.Close()
	p, err := sem.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	snap, err := inspector.Snapshot(ctx)
	if err != nil {
		log.Fatal(err)
	}

	err = inspector.Evict(ctx, snap.Sessions[0].ID, semaphore.EvictOptions{
		Force: true, Timeout: time.Millisecond, Reason: "it hangs",
	})
	if err != nil {
		log.Fatal(err)
	}
	<-p.Lost()
	fmt.Println("lost")
	// Output: lost
}

func ExampleInspector_Events() {
	ctx := context.Background()
	sem, inspector := inspect(ctx, "logged")
	defer sem.Close()
	if err := inspector.SetCapacity(ctx, 5); err != nil {
		log.Fatal(err)
	}

	events, err := inspector.Events(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range events {
		fmt.Println(e.Kind, e.Owner+e.By)
	}
	// Output:
	// joined web-1
	// capacity ann
}

// Stats cost no round trip: this process knows them.
func ExampleSemaphore_Stats() {
	ctx := context.Background()
	sem, err := semaphore.Open(ctx, redisURL(), semaphore.Config{Name: "stats", Capacity: 3})
	if err != nil {
		log.Fatal(err)
	}
	defer sem.Close()
	if _, err := sem.Acquire(ctx); err != nil {
		log.Fatal(err)
	}

	stats := sem.Stats()
	fmt.Println(stats.Held, "held of", stats.Capacity)
	// Output: 1 held of 3
}
