// Command sqlx places orders through sqlx. The name "pgx" tells sqlx how to write placeholders: a
// name that it does not know leaves each ? as it is.
// See the package documentation of examples for what it needs.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
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

	config, err := pgx.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	db := passbuddy.OpenDB(stdlib.GetConnector(*config), sem, passbuddy.Config{})
	defer db.Close()
	dbx := sqlx.NewDb(db, "pgx")

	group, ctx := errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for range 5 {
				order := map[string]any{"item": fmt.Sprint("book ", worker)}
				if _, err := dbx.NamedExecContext(ctx,
					"insert into orders (item) values (:item)", order); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
