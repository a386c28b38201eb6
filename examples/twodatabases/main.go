// Command twodatabases is one process with two databases, each under a cap of its own: a semaphore
// has one name for each database.
// It reads BILLING_URL beside what the package documentation of examples says.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"golang.org/x/sync/errgroup"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return placeOrders(ctx, os.Getenv("DATABASE_URL"),
			semaphore.Config{Name: "orders-db", Capacity: 5})
	})
	group.Go(func() error {
		return placeOrders(ctx, os.Getenv("BILLING_URL"),
			semaphore.Config{Name: "billing-db", Capacity: 3})
	})
	return group.Wait()
}

// placeOrders works on one database.
func placeOrders(ctx context.Context, databaseURL string, config semaphore.Config) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"), config)
	if err != nil {
		return err
	}
	defer sem.Close()
	pool, err := passpool.New(ctx, databaseURL, sem, passbuddy.Config{})
	if err != nil {
		return err
	}
	defer pool.Close()

	group, ctx := errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for range 5 {
				if _, err := pool.Exec(ctx, "insert into orders (item) values ($1)",
					fmt.Sprint("book ", worker)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
