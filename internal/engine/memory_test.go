package engine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// While Redis is out of memory, a pool's request keeps its place in the queue and is granted
// permits that others give back. A pool that asks only then gets an error with the reason, and a
// permit once there is memory again. Backends of held permits are recorded throughout.
func TestPoolsWithoutMemory(t *testing.T) {
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("this test needs a real Redis (make test installs it): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	c := redis.NewClient(r.Options())
	t.Cleanup(func() { _ = c.Close() })
	memory := func(limit string) {
		t.Helper()
		if err := c.ConfigSet(t.Context(), "maxmemory", limit).Err(); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	opened, err := Open(t.Context(), c, false,
		// A machine that stalls loses no lease of a minute.
		filled(Config{Capacity: 2, TTL: time.Minute, RetryInterval: 50 * time.Millisecond,
			Patience: forever}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = opened.Close() })
	s := &session{Session: opened, client: c}
	permits := []*Permit{s.NewPermit(), s.NewPermit()}
	if err := s.Acquire(t.Context(), Wait, permits...); err != nil {
		t.Fatal(err)
	}
	early, late := s.pool(t), s.pool(t)
	early.Ask(1)
	until("the early pool waits", func() bool {
		return s.state(t).Waiters == 1
	})
	memory("1")
	late.Ask(1)
	until("the late pool hears that there is no memory", func() bool { return late.Err() != nil })
	if err := late.Err(); !strings.Contains(err.Error(), "OOM") {
		t.Errorf("Err: %v, want one that names OOM", err)
	}
	release(t, permits[0])
	until("the early pool is granted what was released", func() bool {
		return early.Count("granted") == 1
	})
	if err := early.RecordBackend(early.Permits()[0], "7 8 0")(t.Context()); err != nil {
		t.Errorf("a backend is not recorded: %v", err)
	}
	release(t, permits[1])
	if got := s.state(t); got.Held != 1 || got.Waiters != 0 {
		t.Errorf("%d held, %d wait; want 1 and none", got.Held, got.Waiters)
	}
	memory("0")
	until("the late pool is granted a permit", func() bool { return late.Count("granted") == 1 })
	if err := late.Err(); err != nil {
		t.Errorf("Err with memory again: %v", err)
	}
}
