// Command pq places orders through database/sql and lib/pq. The Dialer lets each permit follow the
// socket of its connection.
// See the package documentation of examples for what it needs.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/lib/pq"
	"golang.org/x/sync/errgroup"

	"github.com/passbuddy/passbuddy"
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
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "orders-db", Capacity: 5})
	if err != nil {
		return err
	}
	defer sem.Close()

	connector, err := pq.NewConnector(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	connector.Dialer(&passbuddy.Dialer{})
	db := passbuddy.OpenDB(connector, sem, passbuddy.Config{})
	defer db.Close()

	group, ctx := errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for range 5 {
				if _, err := db.ExecContext(ctx, "insert into orders (item) values ($1)",
					fmt.Sprint("book ", worker)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
