// Package dashboard serves a live page of a fleet: who holds its permits, who waits, what changed,
// and who chose its capacity. Mount it on a mux of your own, at the root or below a path:
//
//	page, err := dashboard.New(dashboard.Options{Client: client, Name: "orders"})
//	if err != nil {
//		return err
//	}
//	defer page.Close()
//	mux.Handle("/passbuddy/", http.StripPrefix("/passbuddy", page))
//
// `passbuddy serve` serves the same page. The page joins nothing: it declares no capacity and sends
// no heartbeat. It asks Redis once a second while somebody looks, however many look, and not at all
// while nobody does.
//
// The handler does not authenticate its readers. They see names of hosts, programs, Postgres roles
// and addresses; they see no password, no URL and no query. Put your own authentication in front.
// The page is read-only unless Options.Control is set.
package dashboard

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/page"
	"github.com/passbuddy/passbuddy/internal/pgview"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Options configure a Handler. Only Client is required.
type Options struct {
	// Client is of the Redis that the fleet uses. The Handler does not close it. Required.
	Client redis.UniversalClient

	// Prefix and Name are those of the fleet's semaphore.Config. Their defaults are the same.
	Prefix, Name string

	// Postgres is the URL or the connection string of the server that the fleet's connections are
	// of, with a role that sees pg_stat_activity. The page then shows max_connections, and whose all
	// connections are. It opens a connection for that once in some seconds, while somebody looks.
	// Default "": Postgres is not asked. It is shown nowhere.
	Postgres string

	// Interval is how often Redis is asked while somebody looks. From 100ms to 1m, default 1s. A
	// fleet so large that its state takes more than 100ms to read is asked less often.
	Interval time.Duration

	// Timeout bounds each reading of the state. Default 2s. While Redis does not answer, the page
	// says so, and since when.
	Timeout time.Duration

	// Control lets viewers who know a token change the fleet. Default nil: the page is read-only.
	Control *Control

	// Logger receives a line for each action, and for each one that was refused. Default
	// slog.Default().
	Logger *slog.Logger
}

// Control lets viewers set the capacity, pause and resume the fleet, and evict a session. Each of
// these asks for the token and for the name of the semaphore.
type Control struct {
	// Token is typed by a viewer. It has visible ASCII characters only, and cannot be empty. The
	// page keeps it in its memory, and sends it in the header Authorization. So serve the page over
	// TLS, or on a loopback address. Required.
	Token string

	// Operator names the person behind a request, for the fleet's log and for Logger. It may read
	// what your authentication has added to the request. Default nil: the page asks for a name,
	// which nobody checks. The remote address is always added.
	Operator func(*http.Request) string
}

// A Handler serves the page. All its methods can be called concurrently.
type Handler struct {
	page   *page.Page
	source *source
}

// New returns a Handler. It asks Redis nothing yet. It returns an error for options that are
// missing or out of their bounds.
func New(opts Options) (*Handler, error) {
	if opts.Client == nil {
		return nil, errors.New("dashboard: Options.Client is missing")
	}
	name := opts.Name
	if name == "" {
		name = semaphore.DefaultName
	}
	inspector, err := semaphore.NewInspector(opts.Client, opts.Prefix, opts.Name)
	if err != nil {
		return nil, err
	}
	if opts.Postgres != "" {
		if err := pgview.Check(opts.Postgres); err != nil {
			return nil, fmt.Errorf("dashboard: Options.Postgres: %w", err)
		}
	}
	source := newSource(inspector, opts)
	inner := page.Options{
		Semaphore: name, Interval: opts.Interval, Timeout: opts.Timeout, Logger: opts.Logger,
		Source: source.read,
	}
	if c := opts.Control; c != nil {
		inner.Control = &page.Control{
			Token: c.Token, Operator: c.Operator,
			As: func(operator string) (page.Actor, error) {
				actor, err := semaphore.NewInspector(opts.Client, opts.Prefix, opts.Name)
				if err != nil {
					return nil, err
				}
				actor.Operator = operator
				return actor, nil
			},
		}
	}
	p, err := page.New(inner)
	if err != nil {
		return nil, err
	}
	return &Handler{page: p, source: source}, nil
}

// ServeHTTP serves the page and what belongs to it. A middleware around it must not hide
// http.Flusher or http.ResponseController's Unwrap: the page is updated by server-sent events.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.page.ServeHTTP(w, r) }

// Close ends the streams of all viewers. It cuts the waits of actions that still run, such as a
// drain: the fleet is then left as semaphore.Inspector documents for a ctx that ends. Call it
// before http.Server.Shutdown, which would wait for the streams. It returns nil.
func (h *Handler) Close() error {
	err := h.page.Close()
	h.source.close()
	return err
}
