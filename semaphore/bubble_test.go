package semaphore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// A world is one Redis and any number of sessions in a bubble of fake time: a test that waits ten seconds
// takes none, and one that would have to poll can be told from one that was pushed to.
type world struct {
	t     *testing.T
	redis *miniredis.Miniredis
}

// inWorld runs f in a bubble with a Redis of its own.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, redis: miniredis.NewMiniRedis()}
		t.Cleanup(func() {
			time.Sleep(2 * time.Second) // go-redis's dialling goroutines look once a second whether their pool is closed
			w.redis.Close()
		})
		f(t, w)
	})
}

// A link is the network between one session and Redis.
type link struct {
	w *world

	mu    sync.Mutex
	conns []net.Conn
	cut   bool // connections end, new ones are refused
	deaf  bool // requests arrive, replies do not
}

func (l *link) dial(context.Context, string, string) (net.Conn, error) {
	c, err := l.w.redis.Dial() // without the lock: the server's may be held by who waits for ours
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		_ = c.Close()
		return nil, errors.New("link is cut")
	}
	l.conns = append(l.conns, c)
	return &linkConn{Conn: c, l: l}, nil
}

func (l *link) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for _, c := range l.conns {
			c.Close()
		}
		l.conns = nil
	}
}

func (l *link) setDeaf(deaf bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deaf = deaf
}

type linkConn struct {
	net.Conn
	l *link
}

func (c *linkConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		c.l.mu.Lock()
		deaf := c.l.deaf
		c.l.mu.Unlock()
		if !deaf || err != nil {
			return n, err
		}
	}
}

// session is a semaphore with its own client and link.
type session struct {
	*Semaphore
	link   *link
	client *redis.Client
}

func (w *world) client() (*redis.Client, *link) {
	l := &link{w: w}
	c := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Dialer: l.dial, Protocol: 2, DisableIdentity: true,
		ReadTimeout: 500 * time.Millisecond, DialerRetries: 1,
	})
	return c, l
}

// join opens a session. It is closed with the bubble unless the test closed, or crashed, it.
func (w *world) join(cfg Config) *session {
	w.t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	c, l := w.client()
	s, err := New(context.Background(), c, cfg)
	if err != nil {
		w.t.Fatalf("New: %v", err)
	}
	out := &session{Semaphore: s, link: l, client: c}
	w.t.Cleanup(out.crash)
	return out
}

// crash ends the session as SIGKILL would: Redis hears nothing.
func (s *session) crash() {
	s.link.setCut(true)
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

// pending is an acquire under way.
type pending struct {
	permit *Permit
	err    error
	done   chan struct{}
	took   time.Duration
}

func (s *session) later(ctx context.Context) *pending {
	p := &pending{done: make(chan struct{})}
	began := time.Now()
	go func() {
		defer close(p.done)
		p.permit, p.err = s.Acquire(ctx)
		p.took = time.Since(began)
	}()
	synctest.Wait()
	return p
}

func (p *pending) isDone() bool {
	synctest.Wait()
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (s *session) snapshot(t *testing.T) Snapshot {
	t.Helper()
	snap, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return snap
}
