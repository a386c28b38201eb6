// Command http serves a costly report: all processes that run it together make at most 3 at once. A
// request beyond that waits its turn. If the wait is too long, the client gets 503 and Retry-After.
//
//	REDIS_URL=redis://127.0.0.1:6379/0 go run ./examples/http 127.0.0.1:8080
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

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

	mux := http.NewServeMux()
	mux.Handle("GET /report", limited(sem, http.HandlerFunc(report)))
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	context.AfterFunc(ctx, func() { served <- server.Shutdown(context.Background()) })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
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

// report works for a second. The request's context ends if the permit is lost meanwhile.
func report(w http.ResponseWriter, r *http.Request) {
	select {
	case <-time.After(time.Second):
		fmt.Fprintln(w, "All is well.")
	case <-r.Context().Done():
		http.Error(w, context.Cause(r.Context()).Error(), http.StatusServiceUnavailable)
	}
}
