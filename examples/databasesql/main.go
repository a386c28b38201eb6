// Command databasesql runs queries through database/sql, with the connections of all processes that
// run it under one cap. It uses pgx's driver. Register lib/pq or any other driver in the same way.
//
//	DATABASE_URL=postgres://user@127.0.0.1/db REDIS_URL=redis://127.0.0.1:6379/0 \
//	  go run ./examples/databasesql
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"

	"github.com/jackc/pgx/v5/stdlib"

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
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"), semaphore.Config{
		Name:     "orders-db", // one name for each database: its users share the capacity
		Capacity: 20,
	})
	if err != nil {
		return err
	}
	defer sem.Close() // after the pool: its connections hold the permits

	// The only change to a program that called sql.Open("pgx", ...).
	passbuddy.Register("pgx-passbuddy", stdlib.GetDefaultDriver(), sem, passbuddy.Config{})
	db, err := sql.Open("pgx-passbuddy", os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer db.Close()
	// the default is 2; PassBuddy gives idle ones up when another process waits
	db.SetMaxIdleConns(20)

	var group sync.WaitGroup
	for i := range 100 {
		group.Go(func() {
			var backend int
			if err := db.QueryRowContext(ctx,
				"select pg_backend_pid()").Scan(&backend); err != nil {
				log.Printf("query %d: %v", i, err)
				return
			}
			fmt.Printf("query %d ran on backend %d\n", i, backend)
		})
	}
	group.Wait()
	return nil
}
