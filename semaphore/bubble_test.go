package semaphore

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/engine"
)

// A world is a bubble.World with sessions of this package.
type world struct{ *bubble.World }

// inWorld runs f in a bubble with a Redis of its own.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	bubble.Run(t, func(t *testing.T, w *bubble.World) { f(t, &world{w}) })
}

// session is a semaphore with its own client and link.
type session struct {
	*Semaphore
	link   *bubble.Link
	client *redis.Client
}

// join opens a session. It closes with the bubble, unless the test has closed or crashed it.
func (w *world) join(cfg Config) *session {
	w.T.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	c, l := w.Client()
	s, err := New(context.Background(), c, cfg)
	if err != nil {
		w.T.Fatalf("New: %v", err)
	}
	out := &session{Semaphore: s, link: l, client: c}
	w.T.Cleanup(out.crash)
	return out
}

// crash ends the session as SIGKILL would: it sends nothing to Redis.
func (s *session) crash() {
	s.link.SetCut(true)
	_ = s.Close()
	_ = s.client.Close()
}

// acquire acquires within the test's patience or fails.
func (s *session) acquire(t *testing.T) *Permit {
	t.Helper()
	p, err := s.Acquire(t.Context())
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return p
}

func release(t *testing.T, p *Permit) {
	t.Helper()
	if err := p.Release(t.Context()); err != nil {
		t.Fatalf("Release: %v", err)
	}
}

// later acquires a permit, and returns once all goroutines of the bubble wait.
func (s *session) later(ctx context.Context) *bubble.Pending[*Permit] {
	return bubble.Later(func() (*Permit, error) { return s.Acquire(ctx) })
}

func (s *session) snapshot(t *testing.T) Snapshot {
	t.Helper()
	snap, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return snap
}

// A pool is a connection pool of a session, and its listener.
type pool struct {
	*engine.Pool
	bubble.Listener[*engine.Permit]
}

func (s *session) pool(t *testing.T) *pool {
	t.Helper()
	p := &pool{}
	if err := p.join(s.Semaphore); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pool) join(s *Semaphore) (err error) {
	p.Pool, err = s.Engine(engine.Seam{}).NewPool(p)
	p.Return = p.Pool.Give
	return err
}
