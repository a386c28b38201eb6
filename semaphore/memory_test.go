package semaphore

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// granted is how many permits the pool was granted. It is for tests in real time.
func (p *pool) granted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, t := range p.told {
		if t == "granted" {
			n++
		}
	}
	return n
}

// Where Redis is out of memory a pool's request keeps its place in the queue, and is granted what others
// give back. A pool that asks only now hears why it gets nothing, and is granted a permit once there is
// memory again. The backend of a permit that is held is recorded all the while.
func TestPoolsWithoutMemory(t *testing.T) {
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if err != nil {
		t.Skip(err)
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
	s, err := New(c, Config{Capacity: 2, TTL: 5 * time.Second, RetryInterval: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	permits, err := s.AcquireN(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	ses := &session{Semaphore: s}
	early, late := ses.pool(t), ses.pool(t)
	early.share.Ask(1)
	until("the early pool waits", func() bool {
		snap, _ := s.Snapshot(t.Context())
		return len(snap.Waiters) == 1
	})
	memory("1")
	late.share.Ask(1)
	until("the late pool hears that there is no memory", func() bool { return late.share.Err() != nil })
	if err := late.share.Err(); !strings.Contains(err.Error(), "OOM") {
		t.Errorf("Err: %v, want one that names OOM", err)
	}
	release(t, permits[0])
	until("the early pool is granted what was released", func() bool { return early.granted() == 1 })
	early.mu.Lock()
	p := early.permits[0]
	early.mu.Unlock()
	if err := early.share.Cover(p, Backend{PID: 7, Start: 8})(t.Context()); err != nil {
		t.Errorf("a backend is not recorded: %v", err)
	}
	release(t, permits[1])
	if snap, err := s.Snapshot(t.Context()); err != nil || snap.Held != 1 || len(snap.Waiters) != 0 {
		t.Errorf("%d held, %d wait, error %v; want 1 and none", snap.Held, len(snap.Waiters), err)
	}
	memory("0")
	until("the late pool is granted a permit", func() bool { return late.granted() == 1 })
	if err := late.share.Err(); err != nil {
		t.Errorf("Err with memory again: %v", err)
	}
}
