// Command lambda is a process that its platform freezes between invocations, the lines of its
// input. Fence lets others end a frozen one's connection before they use its permit.
// See the package documentation of examples for what it needs.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

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
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"), semaphore.Config{
		Name: "orders-db", Capacity: 2,
		TTL: 2 * time.Second, // how long a frozen instance keeps its permit
	})
	if err != nil {
		return err
	}
	defer sem.Close()

	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	config.MaxConns = 1 // an instance serves one invocation at a time
	pool, err := passpool.NewWithConfig(ctx, config, sem, passbuddy.Config{Fence: true})
	if err != nil {
		return err
	}
	defer pool.Close()

	invocations := bufio.NewScanner(os.Stdin)
	for invocations.Scan() {
		if _, err := pool.Exec(ctx, "insert into orders (item) values ($1)",
			invocations.Text()); err != nil {
			return err
		}
		fmt.Println("placed")
	}
	return invocations.Err()
}
