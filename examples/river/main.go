// Command river works jobs with River. With PollOnly a client keeps no connection for LISTEN: that
// one would hold a permit for as long as the client runs.
// "river migrate" creates River's tables; see the package documentation of examples for the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

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
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "orders-db", Capacity: 5})
	if err != nil {
		return err
	}
	defer sem.Close()

	pool, err := passpool.New(ctx, os.Getenv("DATABASE_URL"), sem, passbuddy.Config{})
	if err != nil {
		return err
	}
	defer pool.Close()
	if len(os.Args) > 1 && os.Args[1] == "migrate" {
		migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
		if err != nil {
			return err
		}
		_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
		return err
	}

	workers := river.NewWorkers()
	river.AddWorker(workers, &OrderWorker{pool: pool})
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		PollOnly:          true,
		FetchPollInterval: 200 * time.Millisecond,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 12}},
		Workers:           workers,
	})
	if err != nil {
		return err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	for i := range 40 {
		item := OrderArgs{Item: fmt.Sprint("book ", i)}
		if _, err := client.Insert(ctx, item, nil); err != nil {
			return errors.Join(err, client.Stop(context.WithoutCancel(ctx)))
		}
	}
	<-ctx.Done() // until interrupted, as a service does
	return client.Stop(context.WithoutCancel(ctx))
}

// OrderArgs is a job: place an order.
type OrderArgs struct {
	Item string `json:"item"`
}

// Kind is the name of the job in the database.
func (OrderArgs) Kind() string { return "order" }

// OrderWorker works OrderArgs.
type OrderWorker struct {
	river.WorkerDefaults[OrderArgs]
	pool *pgxpool.Pool
}

// Work places the order.
func (w *OrderWorker) Work(ctx context.Context, job *river.Job[OrderArgs]) error {
	_, err := w.pool.Exec(ctx, "insert into orders (item) values ($1)", job.Args.Item)
	return err
}
