package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/backends"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

const (
	// sampleInterval is how often the sampler counts the backends. The counting costs all
	// strategies the same CPU time.
	sampleInterval = 10 * time.Millisecond
	// spareConnections is how many connections the tight server has beyond the cap, like a server
	// that was sized for its fleet.
	spareConnections = 2
	// ownConnections counts the connections of the sampler and of the counters.
	ownConnections = 2
)

// servers holds the servers that the cells run against.
type servers struct {
	// tight has few more connections than the cap, and is for strategies that cap open connections,
	// or nothing. A strategy that caps only busy connections also needs room for idle ones. It uses
	// roomy, as the ideal does.
	tight, roomy *throwaway.Postgres
	redis        *throwaway.Redis
	redisClient  *redis.Client

	postgresVersion  string
	redisVersion     string
	pgBouncerVersion string // empty: not installed
	execMode         string
}

// startServers starts the databases and reads their versions. Close ends them.
func startServers(ctx context.Context, o Options) (_ *servers, err error) {
	s := &servers{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	most := 0
	for _, sc := range o.plan {
		most = max(most, sc.clients())
	}
	if s.tight, err = startPostgres(ctx, o.capacity+spareConnections+ownConnections); err != nil {
		return nil, err
	}
	if s.roomy, err = startPostgres(ctx, max(most, o.capacity)+spareConnections+
		ownConnections); err != nil {
		return nil, err
	}
	if s.redis, err = throwaway.StartRedis(ctx, throwaway.RedisOptions{}); err != nil {
		return nil, err
	}
	opts, err := redis.ParseURL(s.redis.URL())
	if err != nil {
		return nil, err
	}
	s.redisClient = redis.NewClient(opts)
	if err := s.findVersions(ctx); err != nil {
		return nil, err
	}
	if s.execMode = o.execMode; s.execMode == execModeAuto {
		s.execMode = execModeFor(s.pgBouncerVersion)
	}
	return s, nil
}

func startPostgres(ctx context.Context, maxConnections int) (*throwaway.Postgres, error) {
	p, err := throwaway.StartPostgres(ctx, throwaway.PostgresOptions{
		MaxConnections: maxConnections,
		// No slot is reserved for superusers, so clients meet the well-known error.
		Settings: map[string]string{"superuser_reserved_connections": "0"},
	})
	if err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, p.URL())
	if err == nil {
		_, err = conn.Exec(ctx, accounts)
		err = errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create the accounts: %w", err), p.Stop())
	}
	return p, nil
}

func (s *servers) findVersions(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.tight.AdminURL())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := conn.QueryRow(ctx, "show server_version").Scan(&s.postgresVersion); err != nil {
		return err
	}
	info, err := redisInfo(ctx, s.redisClient, "server")
	if err != nil {
		return err
	}
	s.redisVersion = info["redis_version"]
	s.pgBouncerVersion, err = throwaway.PgBouncerVersion(ctx)
	if errors.Is(err, throwaway.ErrNotFound) {
		return nil
	}
	return err
}

// execModeFor picks how workers send queries through PgBouncer in transaction mode. PgBouncer
// follows prepared statements, pgx's default, since 1.21. For older versions, workers send unnamed
// statements, in one round trip each.
func execModeFor(pgBouncerVersion string) string {
	if pgBouncerVersion == "" {
		return execModeCache
	}
	major, rest, _ := strings.Cut(pgBouncerVersion, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	if err1 != nil || err2 != nil || a < 1 || a == 1 && b < 21 {
		return execModeExec
	}
	return execModeCache
}

func (s *servers) close() (err error) {
	if s.redisClient != nil {
		err = s.redisClient.Close()
	}
	if s.redis != nil {
		err = errors.Join(err, s.redis.Stop())
	}
	for _, p := range []*throwaway.Postgres{s.tight, s.roomy} {
		if p != nil {
			err = errors.Join(err, p.Stop())
		}
	}
	return err
}

func (s *servers) postgresFor(st strategy) *throwaway.Postgres {
	if st.caps == capsBusy || st.ideal {
		return s.roomy
	}
	return s.tight
}

// execModeOf returns how st's workers send their queries.
func (s *servers) execModeOf(st strategy) string {
	switch {
	case s.execMode != execModeBest:
		return s.execMode
	case st.poolMode == "transaction":
		return execModeFor(s.pgBouncerVersion)
	}
	return execModeCache
}

// startPgBouncer starts a PgBouncer for one cell, so that no cell inherits connections.
func (s *servers) startPgBouncer(ctx context.Context, p *throwaway.Postgres,
	sp spec) (*throwaway.PgBouncer, error) {
	settings := map[string]string{
		// Otherwise PgBouncer would check each client's password in its only thread, which takes
		// longer than the warm-up.
		"auth_type": "trust",
	}
	if s.execModeOf(sp.strategy) == execModeCache && sp.strategy.poolMode == "transaction" {
		settings["max_prepared_statements"] = "200" // until 1.24 the default is 0
	}
	return throwaway.StartPgBouncer(ctx, throwaway.PgBouncerOptions{
		Postgres:   p,
		PoolMode:   sp.strategy.poolMode,
		PoolSize:   sp.capacity,
		MaxClients: sp.scenario.clients() + 10,
		Settings:   settings,
	})
}

// workerURL adds the fleet's name and query mode to the URL.
func (s *servers) workerURL(postgresURL string, st strategy) (string, error) {
	u, err := url.Parse(postgresURL)
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Set("application_name", "passbuddy-bench")
	q.Set("default_query_exec_mode", s.execModeOf(st))
	u.RawQuery = q.Encode()
	return u.String(), nil
}

func connectSampler(ctx context.Context, p *throwaway.Postgres) (*backends.Sampler, error) {
	return backends.Connect(ctx, p.AdminURL(), sampleInterval, "usename", throwaway.Role)
}

// semaphoreName differs for each cell, so that no cell waits for the leases of the one before.
func semaphoreName() string { return "passbuddy-bench-" + strings.ToLower(rand.Text()[:8]) }
