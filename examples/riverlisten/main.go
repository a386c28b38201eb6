// Command riverlisten works jobs with River, and is told of new ones by LISTEN. The connection for
// it comes from a small pool of its own, under a cap of its own: one permit for each client.
// "river migrate" creates River's tables; see the package documentation of examples for the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

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

	// As many as there are clients in the fleet, a deploy's second set included.
	listenSem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "orders-db-listeners", Capacity: 2})
	if err != nil {
		return err
	}
	defer listenSem.Close()
	listenPool, err := passpool.New(ctx, os.Getenv("DATABASE_URL"), listenSem, passbuddy.Config{})
	if err != nil {
		return err
	}
	defer listenPool.Close()

	workers := river.NewWorkers()
	river.AddWorker(workers, &OrderWorker{pool: pool})
	driver := listenDriver{Driver: riverpgxv5.New(pool), listen: riverpgxv5.New(listenPool)}
	client, err := river.NewClient(driver, &river.Config{
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 12}},
		Workers: workers,
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

// listenDriver is River's driver, but for the pool that the connection for LISTEN comes from.
type listenDriver struct {
	*riverpgxv5.Driver
	listen *riverpgxv5.Driver
}

// GetListener is called once by each client.
func (d listenDriver) GetListener(p *riverdriver.GetListenenerParams) riverdriver.Listener {
	return d.listen.GetListener(p)
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
