package engine

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// A process is stopped while an extension is on its way, and finds the answer when it wakes. The
// trust in the permit is over, also the trust that the answer proves. The loss is told once: Lost
// is closed, and closing it again would panic.
func TestALateExtensionLosesOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		p := s.acquire(t)
		lost := p.Lost()
		time.Sleep(time.Second)
		s.step(func(c *core.Core, now time.Duration) {
			c.Submit(now, &core.Request{
				Kind: message.Hold, Permits: []*core.Permit{&p.Permit}, Extends: true,
			})
			b := c.NextBatch(now)
			c.BatchAnswered(now+defaultTTL, b, message.Exchanged{
				Now: 1, Granted: []string{p.ID},
			}, false)
		})
		select {
		case <-lost:
		case <-time.After(time.Second):
			t.Error("Lost is open")
		}
	})
}

// Redis is slow for 60 ms once, and one caller's context ends. The session must not take Redis for
// down.
func TestACancelledCallerDoesNotDeclareRedisDown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.stallJoin(Config{Capacity: 5})
		p := s.pool(t)
		s.acquire(t)
		l.Stall(true)
		time.AfterFunc(60*time.Millisecond, func() { l.Stall(false) })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		_, err := s.get(ctx)
		t.Logf("%v", err)
		if err := p.Err(); err != nil {
			t.Errorf("Err is %v, so FallbackConns may open connections", err)
		}
		if p.Heard("changed") > 0 {
			t.Errorf("the pool is told %q, want no change", p.Told())
		}
	})
}

// A caller's wait ends with its context, or with its patience, whatever the network does meanwhile.
func TestNoCallerIsHeldByTheNetwork(t *testing.T) {
	soon := func(t *testing.T) context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	t.Run("dial", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s, l := w.stallJoin(Config{Capacity: 5, TTL: time.Minute})
			s.acquire(t)
			l.Break()
			l.Stall(true) // the network is gone: no RST, dials hang
			began := time.Now()
			_, err := s.get(soon(t))
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("held for %v, ctx ended after 20ms: %v", took, err)
			}
			l.Stall(false)
			// go-redis dials while it holds its subscription's lock. Fake time stops for a
			// goroutine that waits for the lock.
			time.Sleep(time.Second)
		})
	})
	t.Run("gone", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s, l := w.stallJoin(Config{Capacity: 5, TTL: time.Minute})
			s.acquire(t)
			// the stall begins after the reply to "gone"
			s.beforeHeartbeats(func(redis.Cmder) { l.Stall(true) })
			w.Redis.FlushAll()
			defer l.Stall(false)
			began := time.Now()
			_, err := s.get(soon(t))
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("held for %v, ctx ended after 20ms: %v", took, err)
			}
		})
	})
	t.Run("patience", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s, l := w.stallJoin(Config{Capacity: 5, TTL: time.Minute,
				Patience: 40 * time.Millisecond, RetryInterval: 20 * time.Millisecond})
			s.acquire(t)
			l.Stall(true)
			began := time.Now()
			_, err := s.get(context.Background())
			if took := time.Since(began); took > 200*time.Millisecond {
				t.Errorf("held for %v, the patience is 40ms: %v", took, err)
			}
			l.Stall(false)
		})
	})
}
