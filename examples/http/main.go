// Command http serves a costly report: all processes that run it together make at most 3 at once. A
// request beyond that waits its turn. If the wait is too long, the client gets 503 and Retry-After.
// Its argument is the address to listen on; see the package documentation of examples.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/semaphore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) != 2 {
		log.Fatal("usage: http <address>")
	}
	if err := run(ctx, os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, address string) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "reports", Capacity: 3})
	if err != nil {
		return err
	}
	defer sem.Close()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()

	mux := http.NewServeMux()
	mux.Handle("GET /report", limited(sem, report(pool)))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	served := make(chan error, 1)
	context.AfterFunc(ctx, func() { served <- server.Shutdown(context.Background()) })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-served // Shutdown lets the requests under way finish
}

// limited gives each request a permit of its own. With one Permit.Handler for all requests,
// overlapping requests would share one permit: a limit on processes instead of requests.
func limited(sem *semaphore.Semaphore, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sem.NewPermit().Handler(next, semaphore.HandlerOptions{AcquireOnStart: true}).ServeHTTP(w,
			r)
	})
}

// report takes a while. The request's context ends if the permit is lost meanwhile.
func report(pool *pgxpool.Pool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var orders int
		if err := pool.QueryRow(r.Context(),
			"select count(*) from orders, pg_sleep(0.05)").Scan(&orders); err != nil {
			http.Error(w, "no report: try again", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "orders:", orders)
	})
}
