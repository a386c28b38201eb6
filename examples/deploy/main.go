// Command deploy is a service as a rolling deploy replaces it. Old and new processes share the cap;
// one that is told to end finishes its work, then gives its connections to the others.
// See the package documentation of examples for what it needs.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "orders-db", Capacity: 5})
	if err != nil {
		return err
	}
	defer sem.Close() // last: a process that ends without it keeps its permits for a lease
	pool, err := passpool.New(ctx, os.Getenv("DATABASE_URL"), sem, passbuddy.Config{})
	if err != nil {
		return err
	}
	defer pool.Close() // waits for the connections that are in use

	var group errgroup.Group
	for range 8 {
		group.Go(func() error {
			for ctx.Err() == nil { // take no new work once told to end, and finish what has begun
				if _, err := pool.Exec(context.WithoutCancel(ctx),
					"insert into orders (item) values ($1)", os.Getenv("VERSION")); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
