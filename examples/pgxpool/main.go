// Command pgxpool runs queries through pgx's own pool, with the connections of all processes that
// run it under one cap. Start it several times at once: together they never hold more than 20
// backends.
//
//	DATABASE_URL=postgres://user@127.0.0.1/db REDIS_URL=redis://127.0.0.1:6379/0 \
//	  go run ./examples/pgxpool
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"

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
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"), semaphore.Config{
		Name:     "orders-db", // one name for each database: its users share the capacity
		Capacity: 20,
	})
	if err != nil {
		return err
	}
	defer sem.Close() // after the pool: its connections hold the permits

	pool, err := passpool.New(ctx, os.Getenv("DATABASE_URL"), sem, passbuddy.Config{})
	if err != nil {
		return err
	}
	defer pool.Close()

	// From here on the program uses pgx's pool as before.
	var group sync.WaitGroup
	for i := range 100 {
		group.Go(func() {
			var backend int
			if err := pool.QueryRow(ctx, "select pg_backend_pid()").Scan(&backend); err != nil {
				log.Printf("query %d: %v", i, err)
				return
			}
			fmt.Printf("query %d ran on backend %d\n", i, backend)
		})
	}
	group.Wait()
	return nil
}
