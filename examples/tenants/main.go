// Command tenants has a pool for each tenant's database, all under the one cap of their server. An
// idle tenant's connections are given up for a busy one's.
// Its arguments are the databases; see the package documentation of examples for what it needs.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, tenants []string) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"), semaphore.Config{
		Name: "server-1", Capacity: 5, // all databases of the server share max_connections
	})
	if err != nil {
		return err
	}
	defer sem.Close()

	group, ctx := errgroup.WithContext(ctx)
	for _, tenant := range tenants {
		config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
		if err != nil {
			return err
		}
		config.ConnConfig.Database = tenant
		config.MaxConns = 3 // one tenant's share of the process
		pool, err := passpool.NewWithConfig(ctx, config, sem, passbuddy.Config{PoolName: tenant})
		if err != nil {
			return err
		}
		defer pool.Close()
		for worker := range 8 {
			group.Go(func() error {
				_, err := pool.Exec(ctx, "insert into orders (item) values ($1)",
					fmt.Sprint("book ", worker))
				return err
			})
		}
	}
	return group.Wait()
}
