package demo

import (
	"flag"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

// Options are the flags of the demo.
type Options struct {
	processes   int
	goroutines  int
	capacity    int
	duration    time.Duration
	query       string
	scope       string
	integration string
	redisURL    string
	postgresURL string
	svg         string
}

// ParseOptions reads the flags. An error about an invalid value names its flag.
func ParseOptions(args []string, help io.Writer) (Options, error) {
	var o Options
	flags := flag.NewFlagSet("passbuddy demo", flag.ContinueOnError)
	flags.IntVar(&o.processes, "processes", 8,
		"`number` of operating system processes in the fleet")
	flags.IntVar(&o.goroutines, "goroutines", 40,
		"`number` of goroutines in each process that want a connection")
	flags.IntVar(&o.capacity, "cap", 20,
		"`number` of Postgres backends that the fleet may hold together")
	flags.DurationVar(&o.duration, "duration", 10*time.Second, "length of each of the two runs")
	flags.StringVar(&o.query, "query", "select pg_sleep(random()*0.02)",
		"the `SQL` that every goroutine repeats")
	flags.StringVar(&o.scope, "scope", fleet.ScopeConnection,
		"what the cap counts: connection (all open ones) or checkout (those in use)")
	flags.StringVar(&o.integration, "integration", fleet.Pgxpool, "pgxpool or sql (database/sql)")
	flags.StringVar(&o.redisURL, "redis", "", "`URL` of a Redis to use instead of a throwaway one")
	flags.StringVar(&o.postgresURL, "postgres", "",
		"`URL` of a Postgres to use instead of a throwaway one; the run without PassBuddy will "+
			"stress it")
	flags.StringVar(&o.svg, "svg", "passbuddy-demo.svg", "`path` of the picture to write")
	flags.SetOutput(io.Discard) // the caller prints errors; help is printed here
	flags.Usage = func() {
		fmt.Fprintln(help, "Usage: passbuddy demo [flags]\n\nFlags:")
		flags.SetOutput(help)
		flags.PrintDefaults()
		flags.SetOutput(io.Discard)
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return o, o.validate()
}

func (o Options) validate() error {
	for _, n := range []struct {
		flag  string
		value int
		most  int
	}{
		{"-processes", o.processes, 200},
		{"-goroutines", o.goroutines, 10_000},
		{"-cap", o.capacity, 10_000},
	} {
		if n.value < 1 || n.value > n.most {
			return fmt.Errorf("%s is %d: it must be from 1 to %d", n.flag, n.value, n.most)
		}
	}
	if o.duration < 100*time.Millisecond || o.duration > time.Hour {
		return fmt.Errorf("-duration is %v: it must be from 100ms to 1h", o.duration)
	}
	if strings.TrimSpace(o.query) == "" {
		return fmt.Errorf("-query is empty")
	}
	if o.svg == "" {
		return fmt.Errorf("-svg is empty: it must be the path of a file")
	}
	if o.scope != fleet.ScopeConnection && o.scope != fleet.ScopeCheckout {
		return fmt.Errorf("-scope is %q: it must be %s or %s", o.scope, fleet.ScopeConnection,
			fleet.ScopeCheckout)
	}
	if o.integration != fleet.Pgxpool && o.integration != fleet.SQL {
		return fmt.Errorf("-integration is %q: it must be %s or %s", o.integration, fleet.Pgxpool,
			fleet.SQL)
	}
	if o.redisURL != "" {
		if _, err := redis.ParseURL(o.redisURL); err != nil {
			return fmt.Errorf("-redis is not a Redis URL such as redis://127.0.0.1:6379/0: %w",
				withoutURL(err))
		}
	}
	if o.postgresURL != "" {
		if u, err := url.Parse(o.postgresURL); err != nil ||
			(u.Scheme != "postgres" && u.Scheme != "postgresql") {
			return fmt.Errorf(
				"-postgres is not a URL such as postgres://user@127.0.0.1:5432/database")
		}
		if _, err := pgx.ParseConfig(o.postgresURL); err != nil {
			return fmt.Errorf("-postgres: %w", err) // pgx leaves the password out
		}
	}
	return nil
}

// withoutURL returns err without the URL that net/url repeats in it, because the URL can contain a
// password.
func withoutURL(err error) error {
	if parse, ok := err.(*url.Error); ok {
		return parse.Err
	}
	return err
}
