package dashboard

import (
	"context"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	// lookEvery is how often Postgres is asked: each look opens a connection.
	lookEvery = 5 * time.Second
	// lookTimeout bounds a look.
	lookTimeout = 5 * time.Second
	// firstLook is how long the first state waits for the first look.
	firstLook = time.Second
)

// A source reads the state of a fleet. Postgres is looked at beside Redis, and less often: one that
// is slow or full must not make the figures of the fleet old.
type source struct {
	inspector *semaphore.Inspector
	opts      status.Options // with Postgres

	ctx   context.Context // ends with close
	stop  context.CancelFunc
	looks sync.WaitGroup

	// Guarded by mu.
	mu      sync.Mutex
	closed  bool
	looking bool
	looked  time.Time       // when the last look ended
	seen    status.Document // by the last look: only what it says of Postgres is used
}

func newSource(inspector *semaphore.Inspector, opts Options) *source {
	s := &source{inspector: inspector, opts: status.Options{
		Semaphore: opts.Name, Prefix: opts.Prefix, Postgres: opts.Postgres,
	}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// read is the Source of the page.
func (s *source) read(ctx context.Context) (status.Document, error) {
	opts := s.opts
	opts.Postgres = ""
	if s.opts.Postgres == "" {
		return status.Build(ctx, s.inspector, opts)
	}
	first := s.look()
	d, err := status.Build(ctx, s.inspector, opts)
	if first != nil {
		patience := time.NewTimer(firstLook)
		defer patience.Stop()
		select {
		case <-first:
		case <-patience.C:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	d.Postgres, d.PostgresError = s.seen.Postgres, s.seen.PostgresError
	s.mu.Unlock()
	d.Findings = status.Diagnose(d)
	return d, err
}

// look has Postgres looked at if that is due. It returns a channel for the first look of all, which
// is closed at its end.
func (s *source) look() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.looking || time.Since(s.looked) < lookEvery {
		return nil
	}
	s.looking = true
	end := make(chan struct{})
	s.looks.Go(func() {
		defer close(end)
		ctx, cancel := context.WithTimeout(s.ctx, lookTimeout)
		defer cancel()
		// Whose a backend is follows from what the fleet says of itself. Without Redis there is
		// still a view.
		d, _ := status.Build(ctx, s.inspector, s.opts)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.looking, s.looked, s.seen = false, time.Now(), d
	})
	if s.looked.IsZero() {
		return end
	}
	return nil
}

// close ends a look that goes on.
func (s *source) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.looks.Wait()
}
