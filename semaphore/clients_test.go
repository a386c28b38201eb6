package semaphore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

// tenant is a hook that prefixes every key, as applications do that share one Redis between
// tenants.
type tenant struct{}

func (tenant) DialHook(next redis.DialHook) redis.DialHook { return next }
func (tenant) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
func (tenant) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if a := cmd.Args(); cmd.Name() == "evalsha" || cmd.Name() == "eval" {
			n, _ := strconv.Atoi(fmt.Sprint(a[2]))
			for i := 3; i < 3+n; i++ {
				a[i] = "tenant:" + fmt.Sprint(a[i])
			}
		}
		return next(ctx, cmd)
	}
}

// A hook of the caller's client changes no key of the session: all calls use one semaphore.
func TestHooksOfTheClientReachNoKeys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c, _ := w.Client()
		c.AddHook(tenant{})
		defer c.Close()
		s, err := New(t.Context(), c, Config{Capacity: 4})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.AcquireN(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		if snap, err := s.Snapshot(t.Context()); err != nil || snap.Held != 3 {
			t.Errorf("3 permits are held, Snapshot reports %d, %v", snap.Held, err)
		}
		if err := s.SetCapacity(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if _, err := s.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Errorf("after SetCapacity(1) with 3 held: %v, want ErrCapacity", err)
		}
	})
}

type (
	embedsClient    struct{ *redis.Client }
	embedsRing      struct{ *redis.Ring }
	embedsUniversal struct {
		redis.UniversalClient
		_ []string // not comparable
	}
	hidden       = redis.UniversalClient
	embedsHidden struct {
		hidden // exposes no options
		_      []string
	}
)

// The session has connections of its own beside a client of the caller's own type. New warns of a
// type that exposes no options.
func TestWrappedClient(t *testing.T) {
	for name, wrap := range map[string]func(*redis.Client) redis.UniversalClient{
		"struct": func(c *redis.Client) redis.UniversalClient {
			return embedsClient{c}
		},
		"pointer": func(c *redis.Client) redis.UniversalClient {
			return &embedsClient{c}
		},
		"universal": func(c *redis.Client) redis.UniversalClient {
			return embedsUniversal{UniversalClient: c}
		},
		"pointer, universal": func(c *redis.Client) redis.UniversalClient {
			return &embedsUniversal{UniversalClient: c}
		},
		"wrapped twice": func(c *redis.Client) redis.UniversalClient {
			return embedsUniversal{UniversalClient: embedsClient{c}}
		},
		"shows no options": func(c *redis.Client) redis.UniversalClient {
			return embedsHidden{hidden: c}
		},
		"shows none, pointer": func(c *redis.Client) redis.UniversalClient {
			return &embedsHidden{hidden: c}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				var log bytes.Buffer
				l := w.Link()
				unknown := strings.Contains(name, "shows no")
				size := 2
				if unknown {
					// go-redis reuses the timers of waits for a connection in later bubbles, where
					// they crash
					size = 20
				}
				c := redis.NewClient(&redis.Options{
					Addr: "127.0.0.1:6379", Dialer: l.Dial, Protocol: 2, DisableIdentity: true,
					PoolSize: size,
				})
				defer c.Close()
				logger := slog.New(slog.NewTextHandler(&log, nil))
				s, err := New(t.Context(), wrap(c),
					Config{Capacity: 2, TTL: 2 * time.Second, Logger: logger})
				if err != nil {
					t.Fatal(err)
				}
				p, err := s.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var busy []*redis.Conn
				// the application uses all connections of its client
				for !unknown && len(busy) < 2 {
					conn := c.Conn()
					if err := conn.Ping(t.Context()).Err(); err != nil {
						t.Fatal(err)
					}
					busy = append(busy, conn)
				}
				time.Sleep(4 * time.Second)
				if !p.Held() {
					t.Error("the lease was lost while the application kept all its connections")
				}
				for _, b := range busy {
					_ = b.Close()
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				warned := strings.Count(log.String(), "no connections of its own")
				if warned != map[bool]int{true: 1}[unknown] {
					t.Errorf("%d warnings: %s", warned, log.String())
				}
				if unknown && !strings.Contains(log.String(), "embedsHidden") {
					t.Errorf("the warning names no type: %s", log.String())
				}
			})
		})
	}
}

// New refuses a Ring inside any struct.
func TestWrappedRingIsRefused(t *testing.T) {
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	for _, c := range []redis.UniversalClient{
		embedsRing{ring}, &embedsRing{ring},
		embedsUniversal{UniversalClient: ring}, &embedsUniversal{UniversalClient: embedsRing{ring}},
	} {
		if _, err := New(t.Context(), c, Config{}); err == nil ||
			!strings.Contains(err.Error(), "Ring") || errors.Is(err, ErrUnavailable) {
			t.Errorf("New(%T): %v, want a refusal that names the Ring", c, err)
		}
	}
}

// New retries for all of its 5 s while too few replicas acknowledge, or Redis still loads.
func TestJoinTriesWhileRedisCannotYet(t *testing.T) {
	const ready, startTimeout = 3 * time.Second, 5 * time.Second
	for name, answer := range map[string]func(c *server.Peer, cmd string, late bool) bool{
		"replicas": func(c *server.Peer, cmd string, late bool) bool {
			if cmd == "WAIT" {
				c.WriteInt(map[bool]int{true: 1}[late])
			}
			return cmd == "WAIT"
		},
		"loading": func(c *server.Peer, cmd string, late bool) bool {
			switch {
			case cmd == "WAIT":
				c.WriteInt(1)
			case (cmd == "EVALSHA" || cmd == "EVAL") && !late:
				c.WriteError("LOADING Redis is loading the dataset in memory")
			default:
				return false
			}
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, never := range []bool{false, true} {
				inWorld(t, func(t *testing.T, w *world) {
					began := time.Now()
					w.Answers(t, func(c *server.Peer, cmd string, _ ...string) bool {
						return answer(c, cmd, !never && time.Since(began) >= ready)
					})
					c, _ := w.Client()
					defer c.Close()
					s, err := New(t.Context(), c,
						Config{WaitReplicas: 1, Logger: slog.New(slog.DiscardHandler)})
					took := time.Since(began)
					if err == nil {
						defer s.Close()
					}
					switch {
					case !never && (err != nil || took < ready):
						t.Errorf("after %v: %v", took, err)
					case never && (!errors.Is(err, ErrUnavailable) ||
						took < startTimeout-time.Second || took > startTimeout+time.Second):
						t.Errorf("never ready: after %v: %v", took, err)
					}
				})
			}
		})
	}
}

// New refuses a single-node client on a node of a Cluster, whatever the node reports about itself.
func TestNewAtAClusterNode(t *testing.T) {
	serve := func(t *testing.T, info, hello, eval func(*server.Peer)) string {
		srv, err := server.NewServer("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(srv.Close)
		for cmd, f := range map[string]func(*server.Peer){
			"INFO": info, "HELLO": hello, "EVALSHA": eval, "EVAL": eval,
		} {
			if err := srv.Register(cmd, func(c *server.Peer, _ string, _ []string) {
				f(c)
			}); err != nil {
				t.Fatal(err)
			}
		}
		return srv.Addr().String()
	}
	refused := func(c *server.Peer) { c.WriteError("NOPERM no permissions") }
	text := func(info string) func(*server.Peer) {
		return func(c *server.Peer) { c.WriteBulk(info) }
	}
	for name, addr := range map[string]string{
		"INFO": serve(t, text("redis_version:7.0.15\r\nredis_mode:cluster\r\n"),
			refused, refused),
		"INFO without a mode": serve(t,
			text("redis_version:7.1.0\r\n# Cluster\r\ncluster_enabled:1\r\n"), refused, refused),
		"HELLO": serve(t, refused, func(c *server.Peer) {
			c.WriteMapLen(2)
			for _, word := range []string{"version", "7.0.15", "mode", "cluster"} {
				c.WriteBulk(word)
			}
		}, refused),
		"MOVED": serve(t, refused, refused, func(c *server.Peer) {
			c.WriteError("MOVED 1234 127.0.0.1:7001")
		}),
	} {
		t.Run(name, func(t *testing.T) {
			unavailableWithin(t, time.Minute, &redis.Options{Addr: addr, Protocol: 2}, "Cluster")
		})
	}
}

// The session sends no command beyond the documented ACL, not even one that go-redis adds by
// itself. Each would fill the ACL log.
func TestCommandsAreThoseOfTheDocumentedACL(t *testing.T) {
	text, err := os.ReadFile("../docs/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	given := map[string]bool{
		"HELLO":     true,                                  // no ACL can forbid it
		"SUBSCRIBE": true, "PUBLISH": true, "PUBSUB": true, // miniredis has no sharded channels
	}
	for _, word := range strings.Fields(regexp.MustCompile("(?m)^user passbuddy .*$").FindString(
		string(text))) {
		if command, ok := strings.CutPrefix(word, "+"); ok {
			given[strings.ToUpper(command)] = true
		}
	}
	if !given["EVALSHA"] {
		t.Fatal("docs/SECURITY.md has no rule")
	}
	inWorld(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		denied := make(map[string]bool)
		w.Answers(t, func(_ *server.Peer, cmd string, _ ...string) bool {
			mu.Lock()
			defer mu.Unlock()
			if !given[cmd] {
				denied[cmd] = true
			}
			return false
		})
		l := w.Link()
		c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", Dialer: l.Dial})
		defer c.Close()
		s, err := New(t.Context(), c, Config{Capacity: 2})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.SetCapacity(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(denied) > 0 {
			t.Errorf("not in docs/SECURITY.md: %v", denied)
		}
	})
}
