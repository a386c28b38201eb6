package engine

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// A proxy or an ACL refuses the subscription, or a proxy closes its connection. Open goes on at
// once, waiters retry by themselves, and attempts to subscribe become rare. Once subscriptions are
// allowed, the session subscribes.
func TestRefusedSubscription(t *testing.T) {
	refusals := map[string]func(*server.Peer){
		"unknown command": func(c *server.Peer) { c.WriteError("ERR unknown command 'subscribe'") },
		"ACL": func(c *server.Peer) {
			c.WriteError("NOPERM this user has no permissions to run the 'subscribe' command")
		},
		"hangs up": func(c *server.Peer) { c.Close() },
	}
	for _, name := range subset.Of(t, 1, slices.Sorted(maps.Keys(refusals))) {
		refuse := refusals[name]
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				var mu sync.Mutex
				tries, allowed := 0, false
				count := func() int {
					mu.Lock()
					defer mu.Unlock()
					n := tries
					tries = 0
					return n
				}
				w.Answers(t, func(c *server.Peer, cmd string, _ ...string) bool {
					if cmd != "SUBSCRIBE" {
						return false
					}
					mu.Lock()
					tries++
					pass := allowed
					mu.Unlock()
					if !pass {
						// without mu: it may wait for a script, whose commands pass through here,
						// too
						refuse(c)
					}
					return !pass
				})
				var log bytes.Buffer
				var logging sync.Mutex
				logger := slog.New(slog.NewTextHandler(locked{&log, &logging}, nil))
				began := time.Now()
				s := w.join(Config{Capacity: 1, Patience: forever, Logger: logger})
				if took := time.Since(began); took > time.Second {
					t.Errorf("Open waited %v for a refused subscription", took)
				}
				other := w.join(Config{Capacity: 1, Patience: forever})
				p := other.acquire(t)
				waiting := s.later(t.Context())
				release(t, p)
				time.Sleep(defaultRetry * 2)
				if !waiting.IsDone() || waiting.Err != nil {
					t.Errorf("a waiter that retries by itself: done %v, %v", waiting.IsDone(),
						waiting.Err)
				}
				other.crash()
				count()
				time.Sleep(10 * time.Minute)
				if n := count(); n > 40 {
					t.Errorf("%d tries in 10 minutes, want at most 40", n)
				}
				logging.Lock()
				warned := strings.Count(log.String(), "level=WARN")
				logging.Unlock()
				if warned != 1 {
					t.Errorf("%d warnings, want one:\n%s", warned, log.String())
				}
				mu.Lock()
				allowed = true
				mu.Unlock()
				time.Sleep(time.Minute + time.Second)
				channel := s.keys.Channel(s.name)
				if n := w.Redis.PubSubNumSub(channel)[channel]; n != 1 {
					t.Errorf("%d subscriptions a minute after it was allowed, want 1", n)
				}
			})
		})
	}
}

type locked struct {
	w  *bytes.Buffer
	mu *sync.Mutex
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// The primary is demoted and lives on, and the address leads to another server. After a READONLY
// error, scripts and the subscription move to that server.
func TestSubscriptionFollowsADemotion(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		next := miniredis.NewMiniRedis()
		defer next.Close()
		var mu sync.Mutex
		demoted := false
		dial := func(context.Context, string, string) (net.Conn, error) {
			mu.Lock()
			moved := demoted
			mu.Unlock() // a goroutine that holds the server's lock may be waiting for mu, below
			if moved {
				return next.Dial()
			}
			return w.Redis.Dial()
		}
		w.Answers(t, func(c *server.Peer, cmd string, _ ...string) bool {
			mu.Lock()
			defer mu.Unlock()
			if demoted && (cmd == "EVALSHA" || cmd == "EVAL") {
				c.WriteError("READONLY You can't write against a read only replica.")
				return true
			}
			return false
		})
		c := redis.NewClient(&redis.Options{
			Addr: bubble.Addr, Dialer: dial, Protocol: 2, DisableIdentity: true, DialerRetries: 1,
		})
		defer c.Close()
		s := w.open(c, Config{Capacity: 2, TTL: 3 * time.Second})
		defer s.Close()
		p, err := s.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		mu.Lock()
		demoted = true
		mu.Unlock()
		time.Sleep(2 * time.Second)
		channel := s.keys.Channel(s.name)
		if n := next.PubSubNumSub(channel)[channel]; n != 1 {
			t.Errorf("%d subscriptions at the new primary, want 1", n)
		}
		if n := w.Redis.PubSubNumSub(channel)[channel]; n != 0 {
			t.Errorf("%d subscriptions at the old one, want none", n)
		}
		if !p.Held() {
			t.Error("the lease is lost")
		}
	})
}

// Scripts and subscriptions always reach different servers. The session does not replace its
// subscription at every heartbeat.
func TestUnheardSubscriptionIsTriedRarely(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		tries := 0
		w.Answers(t, func(c *server.Peer, cmd string, args ...string) bool {
			mu.Lock()
			defer mu.Unlock()
			if cmd == "SUBSCRIBE" {
				tries++
			}
			if cmd == "PUBLISH" {
				c.WriteInt(0)
			}
			return cmd == "PUBLISH"
		})
		w.join(Config{Capacity: 1})
		time.Sleep(10 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if tries > 20 {
			t.Errorf("%d subscriptions in 10 minutes, want at most 20", tries)
		}
	})
}

// The session keeps a subscription that receives its pushes.
func TestHeardSubscriptionStays(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		tries := 0
		w.Answers(t, func(_ *server.Peer, cmd string, _ ...string) bool {
			mu.Lock()
			defer mu.Unlock()
			if cmd == "SUBSCRIBE" {
				tries++
			}
			return false
		})
		w.join(Config{Capacity: 1})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if tries != 1 {
			t.Errorf("%d subscriptions, want 1", tries)
		}
	})
}
