// Command migrate brings the schema up to date with golang-migrate, then places orders. The
// migrations run over connections that count, and are closed before the work begins.
// See the package documentation of examples for what it needs.
package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/golang-migrate/migrate/v4"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source/iofs"
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

//go:embed migrations
var migrations embed.FS

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
	if err := migrateUp(config, sem); err != nil {
		return err
	}
	db := passbuddy.OpenDB(stdlib.GetConnector(*config), sem, passbuddy.Config{})
	defer db.Close()

	group, ctx := errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for range 5 {
				if _, err := db.ExecContext(ctx, "insert into orders (item) values ($1)",
					fmt.Sprint("book ", worker)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// migrateUp has a DB of its own, because Close of the migration closes the DB that it was given.
func migrateUp(config *pgx.ConnConfig, sem *semaphore.Semaphore) error {
	db := passbuddy.OpenDB(stdlib.GetConnector(*config), sem, passbuddy.Config{})
	defer db.Close()
	driver, err := migratepgx.WithInstance(db, &migratepgx.Config{})
	if err != nil {
		return err
	}
	source, err := iofs.New(migrations, "migrations")
	if err != nil {
		return err
	}
	up, err := migrate.NewWithInstance("iofs", source, "pgx5", driver)
	if err != nil {
		return err
	}
	if err := up.Up(); err != nil && !errors.Is(err, migrate.ErrNoChange) {
		return err
	}
	return errors.Join(up.Close())
}
