package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/alicebob/miniredis/v2"
	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// servers are the Postgres and the Redis of a demo.
type servers struct {
	postgresURL string
	adminURL    string // to sample through
	redisURL    string
	application string // the fleet's application_name

	// limit is how many connections the fleet could get from Postgres, 0 if unknown.
	limit        int
	postgresText string
	redisText    string
	ownPostgres  bool // the user's, not a throwaway one

	restart func(context.Context) error // of a throwaway Postgres
	stops   []func() error
}

// startServers starts what the user did not name by a URL. Close ends it.
func startServers(ctx context.Context, o options) (_ *servers, err error) {
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

func (s *servers) startPostgres(ctx context.Context, o options) error {
	if o.postgresURL != "" {
		s.postgresURL, s.adminURL, s.ownPostgres = o.postgresURL, o.postgresURL, true
		s.postgresText = "yours"
		return nil
	}
	// A little more than the cap, as a server has that was sized for its fleet; the third slot is the sampler's.
	// A cap on checkouts leaves idle connections uncounted, so there the server must have room for all of them.
	s.limit = o.capacity + 2
	if o.scope == scopeCheckout {
		s.limit = max(s.limit, o.processes*o.goroutines)
	}
	p, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{
		MaxConnections: s.limit + 1,
		// Nothing is kept back for a superuser, so the error is the well-known one.
		Settings: map[string]string{"superuser_reserved_connections": "0"},
	})
	if err != nil {
		return err
	}
	s.stops, s.restart = append(s.stops, p.Stop), p.Restart
	s.postgresURL, s.adminURL = p.URL(), p.AdminURL()
	s.postgresText = fmt.Sprintf("throwaway, on port %d, with room for %d connections of the fleet", p.Port(), s.limit)
	return nil
}

func (s *servers) startRedis(ctx context.Context, o options) error {
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

// afresh makes sure that nothing of the run before is left in Postgres: connections that clients gave up while they
// were being opened take up slots for a while, and are in no statistics. It ends every session of a throwaway server.
func (s *servers) afresh(ctx context.Context) error {
	if s.restart == nil {
		return nil
	}
	return s.restart(ctx)
}

// workerURL is the Postgres URL for a worker: it names the fleet's application, and lets a pool grow to one connection
// for each goroutine.
func (s *servers) workerURL(goroutines int, integration string) (string, error) {
	u, err := url.Parse(s.postgresURL)
	if err != nil {
		return "", withoutURL(err)
	}
	q := u.Query()
	q.Set("application_name", s.application)
	if integration == integrationPgxpool { // database/sql takes it by a method
		q.Set("pool_max_conns", strconv.Itoa(goroutines))
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// connectSampler opens the connection to sample through. It must be open before the fleet starts: later there may be
// no slot left for it.
func (s *servers) connectSampler(ctx context.Context, scope string) (*sampler, error) {
	cfg, err := pgx.ParseConfig(s.adminURL)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["application_name"] = "passbuddy-demo-sampler"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres to count backends: %w", err)
	}
	return newSampler(conn, s, scope), nil
}
