// Command mysql places orders through Go's MySQL driver: the wrapper works with any driver. The
// Dialer lets each permit follow the socket of its connection.
// It reads MYSQL_DSN, such as user:password@tcp(127.0.0.1:3306)/db, and REDIS_URL.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"

	"github.com/go-sql-driver/mysql"
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

	config, err := mysql.ParseDSN(os.Getenv("MYSQL_DSN"))
	if err != nil {
		return err
	}
	config.DialFunc = (&passbuddy.Dialer{}).DialContext
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return err
	}
	db := passbuddy.OpenDB(connector, sem, passbuddy.Config{PoolName: "orders"})
	defer db.Close()

	group, ctx := errgroup.WithContext(ctx)
	for range 8 {
		group.Go(func() error {
			for range 5 {
				if _, err := db.ExecContext(ctx,
					"insert into orders (item) values ('book')"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
