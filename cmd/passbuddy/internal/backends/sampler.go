// Package backends counts a fleet's backends in pg_stat_activity: the server's own count, not the
// pools'.
package backends

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// quietInterval is how often AwaitQuiet counts.
	quietInterval = 5 * time.Millisecond
	// quietTimeout bounds how long AwaitQuiet waits for the backends of one run to end before the
	// next run begins.
	quietTimeout = 15 * time.Second
	// countTimeout bounds one count, on a server that may be at its limits.
	countTimeout = 10 * time.Second
)

// Sample is the number of backends at a time since the start of the run.
type Sample struct {
	At   time.Duration
	Open int
	Busy int // in a query or a transaction, so checked out
}

// Sampler counts the backends of one role or one application.
type Sampler struct {
	conn     *pgx.Conn
	interval time.Duration
	query    string
	arg      string

	mu      sync.Mutex
	samples []Sample
}

// Connect opens the connection to sample through. The caller opens it before the fleet starts,
// because the fleet may leave no slot for it later. A backend belongs to the fleet if the given
// column of pg_stat_activity, such as usename, has the given value.
func Connect(ctx context.Context, url string, interval time.Duration, column,
	value string) (*Sampler, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["application_name"] = "passbuddy-sampler"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres to count backends: %w", err)
	}
	return &Sampler{conn: conn, interval: interval, query: query + column + " = $1", arg: value},
		nil
}

// The view reads one backend after the other. Meanwhile one can end and the next begin, so a plain
// count can exceed the number that ever lived at once. We count only backends that began before our
// statement and still live when they are read: these all lived at one instant. The same holds for
// backends that were busy before the statement and still are. A backend that is idle outside a
// transaction is not checked out. A backend that is connecting has no state yet.
const query = `select count(*), count(*) filter (where state_change <= statement_timestamp()
	and (state like 'idle in transaction%' or state in ('active', 'fastpath function call')))
from pg_stat_activity where backend_type = 'client backend' ` +
	`and backend_start <= statement_timestamp() and `

// count ignores the end of ctx: pgx would close the connection, and there may be no slot for
// another.
func (s *Sampler) count(ctx context.Context) (open, busy int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTimeout)
	defer cancel()
	if err := s.conn.QueryRow(ctx, s.query, s.arg).Scan(&open, &busy); err != nil {
		return 0, 0, fmt.Errorf("count backends: %w", err)
	}
	return open, busy, nil
}

// Start samples until the function that it returns is called. That function returns an error if the
// sampling ended earlier. Meanwhile the caller may use only Latest and Taken.
func (s *Sampler) Start(ctx context.Context, start time.Time) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	sampled := make(chan error, 1)
	go func() { sampled <- s.run(ctx, start) }()
	return sync.OnceValue(func() error {
		cancel()
		return <-sampled
	})
}

func (s *Sampler) run(ctx context.Context, start time.Time) error {
	s.mu.Lock()
	s.samples = nil
	s.mu.Unlock()
	ticker := time.NewTicker(s.interval)
	defer ticker.Stop()
	for {
		open, busy, err := s.count(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.samples = append(s.samples, Sample{time.Since(start), open, busy})
		s.mu.Unlock()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Latest returns the last sample.
func (s *Sampler) Latest() (last Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.samples) > 0 {
		last = s.samples[len(s.samples)-1]
	}
	return last
}

// Taken returns the samples so far.
func (s *Sampler) Taken() []Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.samples[:len(s.samples):len(s.samples)]
}

// AwaitQuiet waits until none of the fleet's backends is left.
func (s *Sampler) AwaitQuiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quietTimeout)
	defer cancel()
	ticker := time.NewTicker(quietInterval)
	defer ticker.Stop()
	for {
		n, _, err := s.count(ctx)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%d backends of the run before are still there: %w", n, ctx.Err())
		}
	}
}

// Conn is the connection itself, for other questions while no sampling is under way.
func (s *Sampler) Conn() *pgx.Conn { return s.conn }

// Close closes the connection.
func (s *Sampler) Close() { _ = s.conn.Close(context.Background()) }
