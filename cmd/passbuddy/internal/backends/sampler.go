// Package backends counts a fleet's backends in pg_stat_activity: the server's own word, not the pools'.
package backends

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// quietInterval is how often AwaitQuiet looks.
	quietInterval = 5 * time.Millisecond
	// quietTimeout bounds how long the backends of one run may take to be gone before the next begins.
	quietTimeout = 15 * time.Second
	// countTimeout bounds one count, on a server that may be at its limits.
	countTimeout = 10 * time.Second
)

// Sample is the number of backends at a time since the start of the run.
type Sample struct {
	At   time.Duration
	Open int
	Busy int // in a query or a transaction, so in somebody's hands
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

// Connect opens the connection to sample through. It must be open before the fleet starts: later there may be no slot
// left for it. The column of pg_stat_activity, such as usename, tells the fleet's backends by its value.
func Connect(ctx context.Context, url string, interval time.Duration, column, value string) (*Sampler, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["application_name"] = "passbuddy-sampler"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres to count backends: %w", err)
	}
	return &Sampler{conn: conn, interval: interval, query: query + column + " = $1", arg: value}, nil
}

// The view reads one backend after the other, and meanwhile one can end and the next begin, so that a plain count
// can show more than there ever were at once. Those that began before our statement and are still there when
// they are read were all there at one instant. So it is with those that were busy before it and still are. A backend
// that is idle outside a transaction is in nobody's hands. One that is connecting has no state yet.
const query = `select count(*), count(*) filter (where state_change <= statement_timestamp()
	and (state like 'idle in transaction%' or state in ('active', 'fastpath function call')))
from pg_stat_activity where backend_type = 'client backend' and backend_start <= statement_timestamp() and `

// count is never interrupted by ctx: pgx would close the connection, and there may be no slot for another.
func (s *Sampler) count(ctx context.Context) (open, busy int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTimeout)
	defer cancel()
	if err := s.conn.QueryRow(ctx, s.query, s.arg).Scan(&open, &busy); err != nil {
		return 0, 0, fmt.Errorf("count backends: %w", err)
	}
	return open, busy, nil
}

// Start samples until the function that it returns is called. That returns an error when the sampling had to end
// before. Nothing else may use the Sampler meanwhile, but Latest and Taken.
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

// Latest is the last sample.
func (s *Sampler) Latest() (last Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.samples) > 0 {
		last = s.samples[len(s.samples)-1]
	}
	return last
}

// Taken are the samples so far.
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
