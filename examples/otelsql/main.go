// Command otelsql places orders with spans by otelsql. It goes around PassBuddy's connector: its
// spans of a connect then contain the wait for a permit, and PassBuddy sees pgx's driver itself.
// "otelsql under" shows the other order, for a driver that somebody else has wrapped. See the
// package documentation of examples for what it needs.
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/XSAM/otelsql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
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
	exporter := tracetest.NewInMemoryExporter() // yours sends them to a collector
	spans := trace.NewTracerProvider(trace.WithSyncer(exporter))
	defer spans.Shutdown(context.WithoutCancel(ctx))

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
	open := around
	if len(os.Args) > 1 && os.Args[1] == "under" {
		open = under
	}
	db, err := open(config, spans, sem)
	if err != nil {
		return err
	}
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
	if err := group.Wait(); err != nil {
		return err
	}
	seen := make(map[string]int)
	for _, span := range exporter.GetSpans() {
		seen[span.Name]++
	}
	fmt.Println(seen["sql.conn.exec"], "inserts traced")
	return nil
}

// around has otelsql around PassBuddy.
func around(config *pgx.ConnConfig, spans *trace.TracerProvider, sem *semaphore.Semaphore) (
	*sql.DB, error,
) {
	connector := passbuddy.WrapConnector(stdlib.GetConnector(*config), sem, passbuddy.Config{})
	db := otelsql.OpenDB(connector, otelsql.WithTracerProvider(spans),
		otelsql.WithAttributes(semconv.DBSystemNamePostgreSQL))
	db.SetMaxIdleConns(5) // passbuddy.OpenDB would have done it
	return db, nil
}

// under has otelsql under PassBuddy.
func under(config *pgx.ConnConfig, spans *trace.TracerProvider, sem *semaphore.Semaphore) (
	*sql.DB, error,
) {
	// PassBuddy sees otelsql's driver, so pgx has to be told to dial by PassBuddy.
	config.DialFunc = (&passbuddy.Dialer{Next: config.DialFunc}).DialContext
	traced := otelsql.WrapDriver(stdlib.GetDefaultDriver(), otelsql.WithTracerProvider(spans),
		otelsql.WithAttributes(semconv.DBSystemNamePostgreSQL))
	connector, err := traced.(driver.DriverContext).OpenConnector(stdlib.RegisterConnConfig(config))
	if err != nil {
		return nil, err
	}
	return passbuddy.OpenDB(connector, sem, passbuddy.Config{PoolName: "orders"}), nil
}
