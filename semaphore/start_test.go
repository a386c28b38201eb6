package semaphore

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

func TestConfigNamesTheFieldItRefuses(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer client.Close()
	for field, cfgs := range map[string][]Config{
		"Prefix": {{Prefix: "a{b"}, {Prefix: strings.Repeat("x", 129)}, {Prefix: "a\nb"}},
		"Name": {{Name: "}"}, {Name: strings.Repeat("x", 129)}, {Name: "a\x00b"},
			{Name: "\xff"}},
		"Capacity":     {{Capacity: -1}, {Capacity: maxCapacity + 1}, {Capacity: 1 << 60}},
		"Min":          {{Min: -1}, {Min: 11}, {Min: 1 << 60}},
		"Max":          {{Max: -1}, {Min: 2, Max: 1}, {Max: 1 << 60}},
		"Weight":       {{Weight: -1}, {Weight: 101}},
		"MaxWaiters":   {{MaxWaiters: -1}, {MaxWaiters: 1 << 60}},
		"WaitReplicas": {{WaitReplicas: -1}, {WaitReplicas: 1 << 60}},
		"MaxAttempts":  {{MaxAttempts: 1 << 60}},
		"TTL":          {{TTL: -time.Second}, {TTL: time.Millisecond}, {TTL: 1000 * time.Hour}},
		"RetryInterval": {{RetryInterval: -1}, {RetryInterval: time.Microsecond},
			{RetryInterval: 1000 * time.Hour}},
	} {
		for _, cfg := range cfgs {
			_, err := New(t.Context(), client, cfg)
			if err == nil || !strings.Contains(err.Error(), "Config."+field) {
				t.Errorf("%+v: error %v does not name %s", cfg, err, field)
			}
			if errors.Is(err, ErrUnavailable) {
				t.Errorf("%+v: Redis was asked before the Config was checked", cfg)
			}
			if _, err := Open(t.Context(), "redis://127.0.0.1:1", cfg); err == nil ||
				!strings.Contains(err.Error(), field) {
				t.Errorf("Open, %+v: error %v does not name %s", cfg, err, field)
			}
		}
	}
}

// Methods, not scripts, refuse numbers out of bounds, with the number's name and its bounds.
func TestNumbersAreBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: maxCapacity})
		for _, n := range []int{-1, 0, maxTogether + 1, 1 << 60} {
			if _, err := s.AcquireN(t.Context(), n); err == nil ||
				!strings.Contains(err.Error(), "AcquireN") || errors.Is(err, ErrUnavailable) {
				t.Errorf("AcquireN(%d): %v", n, err)
			}
		}
		for _, n := range []int{-1, maxCapacity + 1, 1 << 60} {
			if err := s.SetCapacity(t.Context(), n); err == nil ||
				!strings.Contains(err.Error(), "SetCapacity") || errors.Is(err, ErrUnavailable) {
				t.Errorf("SetCapacity(%d): %v", n, err)
			}
		}
		permits, err := s.AcquireN(t.Context(), maxTogether)
		if err != nil || len(permits) != maxTogether {
			t.Errorf("AcquireN(%d): %d permits, %v", maxTogether, len(permits), err)
		}
		if err := s.SetCapacity(t.Context(), maxCapacity); err != nil {
			t.Error(err)
		}
	})
}

// A Ring can move to another shard by itself. That shard would then have a second semaphore of the
// same name.
func TestRingIsRefused(t *testing.T) {
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1",
		"b": "127.0.0.1:2"}})
	defer ring.Close()
	if _, err := New(t.Context(), ring, Config{}); err == nil ||
		!strings.Contains(err.Error(), "Ring") || errors.Is(err, ErrUnavailable) {
		t.Errorf("New: %v, want a refusal that names the Ring", err)
	}
}

func TestOwnerIsCleaned(t *testing.T) {
	c, err := Config{Owner: "a\x1b[31m\nb" + strings.Repeat("é", 300)}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Owner) > maxOwnerBytes || !strings.HasPrefix(c.Owner, "a[31mb") ||
		strings.Contains(c.Owner, "�") {
		t.Fatalf("owner %q", c.Owner)
	}
}

func TestNewWithoutClient(t *testing.T) {
	var typed *redis.Client
	for _, c := range []redis.UniversalClient{nil, typed} {
		if _, err := New(t.Context(), c, Config{}); err == nil ||
			!strings.Contains(err.Error(), "client is nil") {
			t.Errorf("New(%v): %v", c, err)
		}
	}
}

// unavailableWithin fails the test unless New returns in time, with ErrUnavailable and the given
// text.
func unavailableWithin(t *testing.T, limit time.Duration, o *redis.Options, text string) {
	t.Helper()
	c := redis.NewClient(o)
	defer c.Close()
	failed := make(chan error, 1)
	go func() {
		_, err := New(t.Context(), c, Config{})
		failed <- err
	}()
	select {
	case err := <-failed:
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), text) {
			t.Errorf("New: %v, want ErrUnavailable and %q", err, text)
		}
	case <-time.After(limit):
		t.Errorf("New did not return within %v", limit)
	}
}

func TestNewWithoutRedis(t *testing.T) {
	t.Parallel() // it waits
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	unavailableWithin(t, time.Minute, &redis.Options{Addr: closed}, "refused")

	silent, err := net.Listen("tcp", "127.0.0.1:0") // it accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	unavailableWithin(t, time.Minute, &redis.Options{Addr: silent.Addr().String()}, "")
}

func TestNewWithWrongCredentials(t *testing.T) {
	m := miniredis.RunT(t)
	m.RequireAuth("secret-word")
	unavailableWithin(t, time.Minute, &redis.Options{Addr: m.Addr()}, "NOAUTH")
	unavailableWithin(t, time.Minute, &redis.Options{Addr: m.Addr(), Password: "another-secret"},
		"WRONGPASS")
	if _, err := Open(context.Background(), "redis://:other-secret@"+m.Addr(),
		Config{}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("Open: %v, want an error without the password", err)
	}
	s, err := Open(context.Background(), "redis://:secret-word@"+m.Addr(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenWithBadURLDoesNotShowThePassword(t *testing.T) {
	for _, u := range []string{"", "http://x", "redis://:hunter2@[bad", "redis://:hunter2@x:port",
		":::hunter2"} {
		if _, err := Open(t.Context(), u, Config{}); err == nil ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%q): %v", u, err)
		}
	}
}

func TestNewWithOldServer(t *testing.T) {
	srv, err := server.NewServer("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	if err := srv.Register("INFO", func(c *server.Peer, _ string, _ []string) {
		c.WriteBulk("# Server\r\nredis_version:3.2.12\r\n")
	}); err != nil {
		t.Fatal(err)
	}
	unavailableWithin(t, time.Minute, &redis.Options{Addr: srv.Addr().String()},
		"Redis 3.2.12, too old: 6.0 or later")
}
