// Command otelpgx places orders through pgx's pool with spans by otelpgx, a tracer of pgx.
// PassBuddy keeps the tracer that it finds, and the span of an acquire contains the wait for a permit.
// See the package documentation of examples for what it needs.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
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
	exporter := tracetest.NewInMemoryExporter() // yours sends them to a collector
	spans := trace.NewTracerProvider(trace.WithSyncer(exporter))
	defer spans.Shutdown(context.WithoutCancel(ctx))

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
	config.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithTracerProvider(spans))
	pool, err := passpool.NewWithConfig(ctx, config, sem, passbuddy.Config{})
	if err != nil {
		return err
	}
	defer pool.Close()

	// otelpgx makes spans only within another.
	ctx, span := spans.Tracer("orders").Start(ctx, "place orders")
	defer span.End()
	group, ctx := errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for range 5 {
				if _, err := pool.Exec(ctx, "insert into orders (item) values ($1)",
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
	fmt.Println(seen["pool.acquire"], "checkouts traced")
	return nil
}
