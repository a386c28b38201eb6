//go:build sqlite

// Command sqlite lets several processes write one SQLite file, one at a time: with a capacity of 1
// none of them sees "database is locked". PerCheckout keeps the file open between writes.
// It reads SQLITE_FILE and REDIS_URL. Its tag spares the others SQLite's long compilation.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"os/signal"

	"golang.org/x/sync/errgroup"
	"modernc.org/sqlite"

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
		semaphore.Config{Name: "orders-file", Capacity: 1})
	if err != nil {
		return err
	}
	defer sem.Close()

	passbuddy.Register("sqlite-passbuddy", &sqlite.Driver{}, sem,
		passbuddy.Config{Scope: passbuddy.PerCheckout})
	db, err := sql.Open("sqlite-passbuddy", os.Getenv("SQLITE_FILE"))
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx,
		"create table if not exists orders (id integer primary key, item text)"); err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for range 5 {
				if _, err := db.ExecContext(ctx, "insert into orders (item) values (?)",
					fmt.Sprint("book ", worker)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
