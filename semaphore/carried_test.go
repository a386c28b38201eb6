package semaphore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// vlink is a link whose replies can be held back, and whose dials can hang (a black hole).
type vlink struct {
	w    *world
	mu   sync.Mutex
	open []net.Conn
	hold bool // replies (and dials) hang until released
}

type vconn struct {
	net.Conn
	l   *vlink
	dmu sync.Mutex
	dl  time.Time
}

func (c *vconn) SetDeadline(t time.Time) error {
	c.dmu.Lock()
	c.dl = t
	c.dmu.Unlock()
	return c.Conn.SetDeadline(t)
}
func (c *vconn) SetReadDeadline(t time.Time) error {
	c.dmu.Lock()
	c.dl = t
	c.dmu.Unlock()
	return c.Conn.SetReadDeadline(t)
}

func (c *vconn) held() bool { c.l.mu.Lock(); defer c.l.mu.Unlock(); return c.l.hold }

func (c *vconn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if errors.Is(err, io.ErrClosedPipe) {
		err = syscall.EPIPE // as TCP has it
	}
	return n, err
}

func (c *vconn) Read(b []byte) (int, error) {
	for c.held() {
		c.dmu.Lock()
		dl := c.dl
		c.dmu.Unlock()
		if !dl.IsZero() && !time.Now().Before(dl) {
			return 0, &net.OpError{Op: "read", Err: timeoutErr{}}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return c.Conn.Read(b)
}

type timeoutErr struct{}

func (timeoutErr) Error() string   { return "i/o timeout" }
func (timeoutErr) Timeout() bool   { return true }
func (timeoutErr) Temporary() bool { return true }

func (l *vlink) dial(dialTimeout time.Duration) func(ctx context.Context, _, _ string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		began := time.Now()
		for {
			l.mu.Lock()
			hold := l.hold
			l.mu.Unlock()
			if !hold {
				break
			}
			if ctx.Err() != nil || time.Since(began) >= dialTimeout {
				return nil, &net.OpError{Op: "dial", Err: timeoutErr{}}
			}
			time.Sleep(time.Millisecond)
		}
		c, err := l.w.redis.Dial()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.open = append(l.open, c)
		l.mu.Unlock()
		return &vconn{Conn: c, l: l}, nil
	}
}

func (l *vlink) set(hold bool) { l.mu.Lock(); l.hold = hold; l.mu.Unlock() }
func (l *vlink) breakAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.open {
		c.Close()
	}
	l.open = nil
}

type vsession struct {
	*Semaphore
	l *vlink
}

func (w *world) vjoin(cfg Config) *vsession {
	w.t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	l := &vlink{w: w}
	ttl := cfg.TTL
	if ttl == 0 {
		ttl = DefaultTTL
	}
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", Dialer: l.dial(min(5*time.Second, ttl/4)), Protocol: 2, DisableIdentity: true, DialerRetries: 1})
	s, err := New(context.Background(), c, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		l.set(false)
		_ = s.Close()
		_ = c.Close()
	})
	return &vsession{s, l}
}

// Redis is slow for 60 ms once, and one caller's context ends.
func TestOneCancelledCallerDeclaresRedisDown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.vjoin(Config{Capacity: 5})
		pool := &pool{}
		share, err := s.NewShare(pool)
		if err != nil {
			t.Fatal(err)
		}
		pool.share = share
		p, err := s.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = p
		s.l.set(true)
		go func() { time.Sleep(60 * time.Millisecond); s.l.set(false) }()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		_, err = s.Acquire(ctx)
		t.Logf("%v", err)
		if err := share.Err(); err != nil {
			t.Errorf("Share.Err: %v: FallbackConns may open connections now", err)
		}
		if pool.heard("changed") > 0 {
			t.Errorf("told %q", pool.told)
		}
	})
}

func TestCancelledTryMatchesItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.vjoin(Config{Capacity: 5})
		s.l.set(true)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		if _, err := s.TryAcquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("does not match its context's error: %v", err)
		}
		s.l.set(false)
	})
}

// A caller's context ends while he carries. How long is he held?
func TestCarrierIsHeld(t *testing.T) {
	t.Run("dial", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s := w.vjoin(Config{Capacity: 5, TTL: time.Minute})
			if _, err := s.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.l.breakAll()
			s.l.set(true) // the network is gone: no RST, dials hang
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err := s.Acquire(ctx)
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("held for %v, ctx ended after 20ms: %v", took, err)
			}
			s.l.set(false)
			time.Sleep(time.Second) // go-redis dials with its subscription's lock held: fake time stands still for who waits for that
		})
	})
	t.Run("gone", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s := w.vjoin(Config{Capacity: 5, TTL: time.Minute})
			if _, err := s.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.own.(*redis.Client).AddHook(before{redisscript.RenewHash(), func() { s.l.set(true) }}) // a stall that begins after "gone" was answered
			w.redis.FlushAll()
			defer s.l.set(false)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err := s.Acquire(ctx)
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("held for %v, ctx ended after 20ms: %v", took, err)
			}
		})
	})
	t.Run("patience", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s := w.vjoin(Config{Capacity: 5, TTL: time.Minute, MaxAttempts: 2, RetryInterval: 20 * time.Millisecond})
			if _, err := s.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.l.set(true)
			began := time.Now()
			_, err := s.Acquire(context.Background())
			if took := time.Since(began); took > 200*time.Millisecond {
				t.Errorf("held for %v, MaxAttempts x RetryInterval is 40ms: %v", took, err)
			}
			s.l.set(false)
		})
	})
}
