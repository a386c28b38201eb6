// Command bun places orders through Bun, over a DB that shares the connections of a pgx pool. Each
// of them is pgx's own, so that code which asks for the driver's type, as for COPY, finds it.
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
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
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

// Order is a row of the table orders.
type Order struct {
	ID   int64 `bun:",pk,autoincrement"`
	Item string
	Paid bool
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
	sqldb := stdlib.OpenDBFromPool(pool)
	defer sqldb.Close()
	db := bun.NewDB(sqldb, pgdialect.New())

	if err := copyIn(ctx, db, [][]any{{"globe"}, {"atlas"}}); err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for range 5 {
				order := Order{Item: fmt.Sprint("book ", worker)}
				if _, err := db.NewInsert().Model(&order).Exec(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// copyIn inserts rows by COPY.
func copyIn(ctx context.Context, db *bun.DB, rows [][]any) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Raw(func(driverConn any) error {
		pgxConn := driverConn.(*stdlib.Conn).Conn()
		_, err := pgxConn.CopyFrom(ctx, pgx.Identifier{"orders"}, []string{"item"},
			pgx.CopyFromRows(rows))
		return err
	})
}
