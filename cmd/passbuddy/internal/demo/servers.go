package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/backends"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// servers are the Postgres and the Redis of a demo.
type servers struct {
	postgresURL string
	adminURL    string // to sample through
	redisURL    string
	application string // the fleet's application_name

	// limit is how many connections Postgres would give the fleet, 0 if unknown.
	limit        int
	postgresText string
	redisText    string
	ownPostgres  bool // the user's, not a throwaway one

	restart func(context.Context) error // of a throwaway Postgres
	stops   []func() error
}

// startServers starts each server that the user gave no URL for. Close ends them.
func startServers(ctx context.Context, o Options) (_ *servers, err error) {
	s := &servers{application: "passbuddy-demo-" + strings.ToLower(rand.Text()[:8])}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := s.startPostgres(ctx, o); err != nil {
		return nil, err
	}
	return s, s.startRedis(ctx, o)
}

func (s *servers) startPostgres(ctx context.Context, o Options) error {
	if o.postgresURL != "" {
		s.postgresURL, s.adminURL, s.ownPostgres = o.postgresURL, o.postgresURL, true
		s.postgresText = "yours"
		return nil
	}
	// The limit is slightly above the cap, as on a server that was sized for its fleet; the third
	// slot is the sampler's. A cap on checkouts leaves idle connections uncounted, so that server
	// needs room for all of them.
	s.limit = o.capacity + 2
	if o.scope == fleet.ScopeCheckout {
		s.limit = max(s.limit, o.processes*o.goroutines)
	}
	p, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{
		MaxConnections: s.limit + 1,
		// No slot is reserved for superusers, so clients meet the well-known error.
		Settings: map[string]string{"superuser_reserved_connections": "0"},
	})
	if err != nil {
		return err
	}
	s.stops, s.restart = append(s.stops, p.Stop), p.Restart
	s.postgresURL, s.adminURL = p.URL(), p.AdminURL()
	s.postgresText = fmt.Sprintf("throwaway, on port %d, with room for %d connections of the fleet",
		p.Port(), s.limit)
	return nil
}

func (s *servers) startRedis(ctx context.Context, o Options) error {
	if o.redisURL != "" {
		s.redisURL, s.redisText = o.redisURL, "yours"
		return nil
	}
	r, err := throwaway.StartRedis(ctx, throwaway.RedisOptions{})
	if err == nil {
		s.stops = append(s.stops, r.Stop)
		s.redisURL, s.redisText = r.URL(), "throwaway, at "+r.Addr()
		return nil
	}
	if !errors.Is(err, throwaway.ErrNotFound) {
		return err
	}
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		return fmt.Errorf("embedded Redis: %w", err)
	}
	s.stops = append(s.stops, func() error { m.Close(); return nil })
	s.redisURL, s.redisText = "redis://"+m.Addr()+"/0", "embedded (there is no redis-server here)"
	return nil
}

func (s *servers) close() error {
	var errs []error
	for _, stop := range s.stops {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// afresh makes sure that no connection of the run before is left in Postgres. A connection that its
// client gave up while opening it occupies a slot for a while, and no statistics show it. So afresh
// ends every session of a throwaway server.
func (s *servers) afresh(ctx context.Context) error {
	if s.restart == nil {
		return nil
	}
	return s.restart(ctx)
}

// workerURL returns the Postgres URL for a worker, with the fleet's application name.
func (s *servers) workerURL() (string, error) {
	u, err := url.Parse(s.postgresURL)
	if err != nil {
		return "", withoutURL(err)
	}
	q := u.Query()
	q.Set("application_name", s.application)
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// sampleInterval is how often the sampler counts the backends.
const sampleInterval = 5 * time.Millisecond

// sampler counts the backends that the scope caps.
type sampler struct {
	*backends.Sampler
	scope string
}

// sample is the number of backends at a time since the start of the run.
type sample struct {
	at       time.Duration
	backends int
}

func (s *servers) connectSampler(ctx context.Context, scope string) (*sampler, error) {
	// On our own server only the fleet uses its role, so the count misses no connection. On the
	// user's server the application name identifies the fleet.
	column, value := "usename", throwaway.Role
	if s.ownPostgres {
		column, value = "application_name", s.application
	}
	inner, err := backends.Connect(ctx, s.adminURL, sampleInterval, column, value)
	if err != nil {
		return nil, err
	}
	return &sampler{inner, scope}, nil
}

func (s *sampler) capped(b backends.Sample) int {
	if s.scope == fleet.ScopeCheckout {
		return b.Busy
	}
	return b.Open
}

// latest returns the last count and the highest so far.
func (s *sampler) latest() (now, peak int) {
	for _, b := range s.Taken() {
		peak = max(peak, s.capped(b))
	}
	return s.capped(s.Latest()), peak
}

func (s *sampler) taken() []sample {
	var samples []sample
	for _, b := range s.Taken() {
		samples = append(samples, sample{b.At, s.capped(b)})
	}
	return samples
}
