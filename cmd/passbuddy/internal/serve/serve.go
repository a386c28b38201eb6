// Package serve is `passbuddy serve`: the page of a fleet, on an address of its own.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/dashboard"
	"github.com/passbuddy/passbuddy/semaphore"
)

// DefaultListen is where the page is without --listen.
const DefaultListen = "127.0.0.1:6480"

// TokenVariable is the environment variable that has the token of --allow-control.
const TokenVariable = "PASSBUDDY_TOKEN"

// shutdownTimeout bounds the wait for requests that run when the program is told to end.
const shutdownTimeout = 5 * time.Second

// Options are what `passbuddy serve` is told.
type Options struct {
	Client       redis.UniversalClient
	Prefix, Name string
	// Postgres is a URL or a connection string, or "": see dashboard.Options.
	Postgres string

	// Listen is host:port. Default DefaultListen.
	Listen string

	// AllowControl lets viewers act who know the token. The token is the content of TokenFile, or
	// else of TokenVariable. It is never an argument: every user of the machine can read those.
	AllowControl bool
	TokenFile    string

	// Logger receives the access log of actions. Default slog.Default().
	Logger *slog.Logger
}

// Run serves the page until ctx ends. Then it ends the streams, and returns nil.
func Run(ctx context.Context, opts Options, out io.Writer) error {
	if opts.Listen == "" {
		opts.Listen = DefaultListen
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	inner := dashboard.Options{
		Client: opts.Client, Prefix: opts.Prefix, Name: opts.Name,
		Postgres: opts.Postgres, Logger: opts.Logger,
	}
	if opts.AllowControl {
		token, err := readToken(opts.TokenFile)
		if err != nil {
			return exit.With(exit.Usage, err)
		}
		inner.Control = &dashboard.Control{Token: token}
	} else if opts.TokenFile != "" {
		return exit.With(exit.Usage, errors.New("--token-file has no use without --allow-control"))
	}
	page, err := dashboard.New(inner)
	if err != nil { // a name, or the token
		return exit.With(exit.Usage, err)
	}
	defer page.Close()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", opts.Listen)
	if err != nil {
		return fmt.Errorf("cannot listen at %s: %w: choose another --listen", opts.Listen, err)
	}
	loopback := isLoopback(listener.Addr())
	announce(out, opts, listener.Addr(), loopback)
	var handler http.Handler = page
	if loopback {
		handler = onlyLocal(page)
	}
	return serve(ctx, listener, handler, page.Close)
}

func announce(out io.Writer, opts Options, addr net.Addr, loopback bool) {
	name, mode := opts.Name, "read-only"
	if name == "" {
		name = semaphore.DefaultName
	}
	if opts.AllowControl {
		mode = "with control, for those who know the token"
	}
	fmt.Fprintf(out, "passbuddy: the page of %q is at http://%s/ (%s)\n", name, addr, mode)
	if loopback {
		return
	}
	fmt.Fprintln(out, "passbuddy: everybody who reaches this address can read the page: put your "+
		"own authentication in front of it")
	if opts.AllowControl {
		fmt.Fprintln(out, "passbuddy: the token travels as it is typed: put TLS in front of the page")
	}
}

// readToken reads the token from a file or, without one, from the environment.
func readToken(file string) (string, error) {
	text, from := os.Getenv(TokenVariable), "the environment variable "+TokenVariable
	if file != "" {
		if text != "" {
			return "", fmt.Errorf("both --token-file and %s are set: use one", TokenVariable)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		text, from = string(content), file
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return "", fmt.Errorf("--allow-control needs a token, but %s is empty: set %s or "+
			"--token-file", from, TokenVariable)
	}
	return text, nil
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// onlyLocal refuses requests for another name than this machine's own. Otherwise a web page could
// have its name resolve to 127.0.0.1 (DNS rebinding), and read ours through the operator's browser.
func onlyLocal(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		ip := net.ParseIP(host)
		local := strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
		if !local {
			http.Error(w, "passbuddy serve listens for this machine only: ask for localhost or "+
				"127.0.0.1, or give it another --listen", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// serve serves until ctx ends. end has the streams end, for which Shutdown would wait.
func serve(ctx context.Context, listener net.Listener, handler http.Handler, end func() error) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second, // streams lift it for themselves
		WriteTimeout:      30 * time.Second, // ... and prolong it with each write
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	if err := end(); err != nil {
		return err
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ending); err != nil {
		return errors.Join(err, server.Close())
	}
	return nil
}
