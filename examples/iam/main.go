// Command iam logs in with a token in place of a password, as with AWS IAM. BeforeConnect asks for
// one at each connect. Each line of its input is a batch of orders.
// TOKEN_FILE stands for the token service; see the package documentation of examples for the rest.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
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

func run(ctx context.Context) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "orders-db", Capacity: 5})
	if err != nil {
		return err
	}
	defer sem.Close()

	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	config.BeforeConnect = func(ctx context.Context, c *pgx.ConnConfig) (err error) {
		c.Password, err = token(ctx)
		return err
	}
	pool, err := passpool.NewWithConfig(ctx, config, sem, passbuddy.Config{})
	if err != nil {
		return err
	}
	defer pool.Close()

	batches := bufio.NewScanner(os.Stdin)
	for batches.Scan() {
		group, ctx := errgroup.WithContext(ctx)
		for range 8 {
			group.Go(func() error {
				_, err := pool.Exec(ctx, "insert into orders (item) values ($1)", batches.Text())
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		fmt.Println("placed")
	}
	return batches.Err()
}

// token stands for auth.BuildAuthToken of the AWS SDK, which needs no round trip.
func token(context.Context) (string, error) {
	text, err := os.ReadFile(os.Getenv("TOKEN_FILE"))
	return string(text), err
}
