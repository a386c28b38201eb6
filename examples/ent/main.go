// Command ent places orders through ent's driver for SQL, which takes a *sql.DB. A generated client
// does the same with it: ent.NewClient(ent.Driver(driver)).
// See the package documentation of examples for what it needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
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
	driver := entsql.OpenDB(dialect.Postgres, db)

	group, ctx := errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for range 5 {
				if err := placeOrder(ctx, driver, fmt.Sprint("book ", worker)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// placeOrder builds and runs the statement as ent's generated Save does.
func placeOrder(ctx context.Context, driver dialect.Driver, item string) error {
	tx, err := driver.Tx(ctx)
	if err != nil {
		return err
	}
	query, args := entsql.Dialect(dialect.Postgres).Insert("orders").Columns("item").Values(item).
		Returning("id").Query()
	var rows entsql.Rows
	if err := tx.Query(ctx, query, args, &rows); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if _, err := entsql.ScanInt(rows); err != nil {
		return errors.Join(err, rows.Close(), tx.Rollback())
	}
	return errors.Join(rows.Close(), tx.Commit())
}
