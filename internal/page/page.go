// Package page serves the live page of a semaphore: its files, the events that keep it up to date,
// and the verbs that change the fleet. Package dashboard is its public name.
//
// One goroutine, the feed, asks for the state of the fleet, and only while a viewer is connected. It
// sends each answer to all viewers. So the load on Redis does not grow with the number of viewers.
//
// The page promises no authentication of its readers: the program that mounts it has to bring that.
// The verbs need a token, whoever the reader is.
package page

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/status"
)

// The defaults of Options.
const (
	DefaultInterval = time.Second
	DefaultTimeout  = 2 * time.Second
)

const (
	minInterval = 100 * time.Millisecond
	maxInterval = time.Minute
	// maxViewers bounds what hostile readers can cost: each one has a goroutine and a compressor.
	maxViewers = 100
)

// Options configure a Page.
type Options struct {
	// Source reads the state of the fleet. The feed calls it from one goroutine at a time, with a
	// ctx that ends after Timeout. Required.
	Source func(ctx context.Context) (status.Document, error)

	// Semaphore is the name of the semaphore. An operator types it to confirm a verb. Required.
	Semaphore string

	// Interval is how often the feed asks while a viewer is connected. From 100ms to 1m, default 1s.
	// The feed waits longer if an answer took more than a tenth of the interval.
	Interval time.Duration

	// Timeout bounds each call of Source. Default 2s.
	Timeout time.Duration

	// Control lets the page's viewers change the fleet. Default nil: the page is read-only.
	Control *Control

	// Logger receives a line for each action, and for each one that was refused. Default
	// slog.Default().
	Logger *slog.Logger
}

// A Page is the handler of one semaphore's page. Mount it at the root or, with http.StripPrefix,
// anywhere else.
type Page struct {
	opts  Options
	feed  *feed
	guard *guard // nil: read-only

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	actions sync.WaitGroup

	// Guarded by mu.
	mu      sync.Mutex
	closed  bool
	running int // actions
}

// New returns a Page. Close it to end its streams and its goroutines.
func New(opts Options) (*Page, error) {
	if opts.Source == nil {
		return nil, errors.New("page: Options.Source is missing")
	}
	if opts.Semaphore == "" {
		return nil, errors.New("page: Options.Semaphore is empty")
	}
	if opts.Interval == 0 {
		opts.Interval = DefaultInterval
	}
	if opts.Interval < minInterval || opts.Interval > maxInterval {
		return nil, fmt.Errorf("page: Options.Interval is %v: it must be from %v to %v",
			opts.Interval, minInterval, maxInterval)
	}
	if opts.Timeout == 0 {
		opts.Timeout = DefaultTimeout
	}
	if opts.Timeout < 0 {
		return nil, fmt.Errorf("page: Options.Timeout is %v: it must be above zero", opts.Timeout)
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	p := &Page{opts: opts}
	if opts.Control != nil {
		g, err := newGuard(*opts.Control)
		if err != nil {
			return nil, err
		}
		p.guard = g
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.feed = newFeed(p.ctx, opts.Source, opts.Interval, opts.Timeout)
	return p, nil
}

// Close ends the streams of all viewers, and the actions that still run, and waits for them. An
// action that is cut leaves the fleet as the Inspector's methods document for a ctx that ends.
// Close can be called more than once.
func (p *Page) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.feed.wait()
	p.actions.Wait()
	return nil
}

// ServeHTTP serves the page.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	protect(w.Header())
	name := r.URL.Path
	switch {
	case name == "":
		toFolder(w, r)
	case name == "/":
		p.read(w, r, func() { serveAsset(w, r, "index.html") })
	case name == "/events":
		p.read(w, r, func() { p.serveEvents(w, r) })
	case name == "/status.json":
		p.read(w, r, func() { p.serveStatus(w, r) })
	case strings.HasPrefix(name, "/assets/"):
		p.read(w, r, func() { serveAsset(w, r, strings.TrimPrefix(name, "/assets/")) })
	case strings.HasPrefix(name, "/control/"):
		p.serveControl(w, r, strings.TrimPrefix(name, "/control/"))
	default:
		http.Error(w, "page: there is nothing at this address", http.StatusNotFound)
	}
}

// read lets only methods pass that read.
func (p *Page) read(w http.ResponseWriter, r *http.Request, serve func()) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "page: this address is only read", http.StatusMethodNotAllowed)
		return
	}
	serve()
}

// toFolder redirects to the address with a slash at its end, because the page's links are relative
// to it. http.StripPrefix has removed the prefix from the URL, but not from RequestURI. The "./"
// keeps the target on this server, whatever the last element of the path is.
func toFolder(w http.ResponseWriter, r *http.Request) {
	uri, query, _ := strings.Cut(r.RequestURI, "?")
	target := "./" + path.Base("/"+uri) + "/"
	if query != "" {
		target += "?" + query
	}
	w.Header().Set("Location", target)
	w.WriteHeader(http.StatusPermanentRedirect)
}
