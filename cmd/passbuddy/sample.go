package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

const (
	sampleInterval = 5 * time.Millisecond
	// quietTimeout bounds how long the backends of one run may take to be gone before the next begins.
	quietTimeout = 15 * time.Second
	// countTimeout bounds one count, on a server that may be at its limits.
	countTimeout = 10 * time.Second
)

// sample is the number of backends at a time since the start of the run.
type sample struct {
	at       time.Duration
	backends int
}

// sampler counts the fleet's backends in pg_stat_activity: the server's own word, not the pools'.
type sampler struct {
	conn  *pgx.Conn
	query string
	arg   string

	mu      sync.Mutex
	samples []sample
	peak    int
}

func newSampler(conn *pgx.Conn, s *servers, scope string) *sampler {
	// On a server of our own the fleet is the only one with its role, so nothing can escape the count. On the user's
	// it is told by the name it gives itself.
	column, arg := "usename", throwaway.Role
	if s.ownPostgres {
		column, arg = "application_name", s.application
	}
	// The view reads one backend after the other, and meanwhile one can end and the next begin, so that a plain count
	// can show more than there ever were at once. Those that began before our statement and are still there when
	// they are read were all there at one instant.
	query := "select count(*) from pg_stat_activity where backend_type = 'client backend' and backend_start <= statement_timestamp() and " +
		column + " = $1"
	if scope == scopeCheckout {
		// A backend that is idle outside a transaction is in nobody's hands. One that is connecting has no state yet.
		query += " and state_change <= statement_timestamp()" +
			" and (state like 'idle in transaction%' or state in ('active', 'fastpath function call'))"
	}
	return &sampler{conn: conn, query: query, arg: arg}
}

// count is never interrupted by ctx: pgx would close the connection, and there may be no slot for another.
func (s *sampler) count(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTimeout)
	defer cancel()
	if err := s.conn.QueryRow(ctx, s.query, s.arg).Scan(&n); err != nil {
		return 0, fmt.Errorf("count backends: %w", err)
	}
	return n, nil
}

// run samples until ctx is done. It returns an error when the sampling had to end before that.
func (s *sampler) run(ctx context.Context, start time.Time) error {
	s.mu.Lock()
	s.samples, s.peak = nil, 0
	s.mu.Unlock()
	ticker := time.NewTicker(sampleInterval)
	defer ticker.Stop()
	for {
		n, err := s.count(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.samples = append(s.samples, sample{time.Since(start), n})
		s.peak = max(s.peak, n)
		s.mu.Unlock()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// latest returns the last count and the highest so far.
func (s *sampler) latest() (now, peak int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.samples) > 0 {
		now = s.samples[len(s.samples)-1].backends
	}
	return now, s.peak
}

func (s *sampler) taken() []sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.samples
}

// awaitQuiet waits until none of the fleet's backends is left.
func (s *sampler) awaitQuiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quietTimeout)
	defer cancel()
	ticker := time.NewTicker(sampleInterval)
	defer ticker.Stop()
	for {
		n, err := s.count(ctx)
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

func (s *sampler) close() { _ = s.conn.Close(context.Background()) }
