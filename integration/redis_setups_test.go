package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// take tries n times, and returns the permits that it was granted.
func take(t *testing.T, s *semaphore.Semaphore, n int) (permits []*semaphore.Permit) {
	t.Helper()
	for range n {
		if p, err := s.TryAcquire(t.Context()); err == nil {
			permits = append(permits, p)
		}
	}
	return permits
}

func held(permits []*semaphore.Permit) (n int) {
	for _, p := range permits {
		if p.Held() {
			n++
		}
	}
	return n
}

func open(t *testing.T, url string, cfg semaphore.Config) *semaphore.Semaphore {
	t.Helper()
	s, err := semaphore.Open(t.Context(), url, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Others fill a shared Redis up to maxmemory. Leases are still renewed, and Redis grants a released
// permit to a request that was queued before. A new request fails, and its error says why. When
// there is memory again, everything works as before.
func TestRedisWithoutMemory(t *testing.T) {
	t.Parallel() // it mostly waits
	r, c := startRedis(t)
	cfg := semaphore.Config{
		Name: t.Name(), Capacity: 3, TTL: 10 * time.Second, MaxAttempts: 2,
		RetryInterval: 100 * time.Millisecond,
	}
	s := open(t, r.URL(), cfg)
	cfg.MaxAttempts = -1
	other := open(t, r.URL(), cfg)
	permits := take(t, s, 3)
	if len(permits) != 3 {
		t.Fatalf("%d permits", len(permits))
	}
	patient := make(chan error, 1)
	var granted *semaphore.Permit
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		granted = other.NewPermit()
		patient <- granted.Acquire(ctx)
	}()
	eventually(t, time.Minute, func() (bool, string) {
		snap, err := s.Snapshot(t.Context())
		return len(snap.Waiters) == 1, fmt.Sprintf("%d wait, error %v", len(snap.Waiters), err)
	})
	memory := func(limit string) {
		t.Helper()
		if err := c.ConfigSet(t.Context(), "maxmemory", limit).Err(); err != nil {
			t.Fatal(err)
		}
	}
	memory("1")
	full := time.Now()
	eventually(t, time.Minute, func() (bool, string) {
		renewed := c.ZCount(t.Context(), "passbuddy-"+cfg.Name,
			fmt.Sprint(full.Add(cfg.TTL).UnixMilli()), "+inf").Val()
		return renewed == 3, fmt.Sprintf("a full Redis has renewed %d of 3 leases", renewed)
	})
	if n := held(permits); n != 3 {
		t.Errorf("%d of 3 leases are left in a full Redis", n)
	}
	release := func(p *semaphore.Permit) {
		t.Helper()
		if err := p.Release(t.Context()); err != nil {
			t.Errorf("Release: %v", err)
		}
	}
	release(permits[0])
	if err := <-patient; err != nil {
		t.Errorf("a waiter of before: %v", err)
	}
	release(permits[1])
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, semaphore.ErrUnavailable) || errors.Is(err, semaphore.ErrCapacity) ||
			!strings.Contains(fmt.Sprint(err), "OOM") {
			t.Errorf("%s: %v, want an ErrUnavailable that names OOM", what, err)
		}
	}
	_, err := s.TryAcquire(t.Context())
	refused("TryAcquire", err)
	_, err = s.Acquire(t.Context())
	refused("Acquire", err)
	_, err = s.AcquireN(t.Context(), 2)
	refused("AcquireN", err)
	_, err = semaphore.Open(t.Context(), r.URL(), cfg)
	refused("Open", err)
	if err := permits[2].Use(t.Context()); err != nil {
		t.Errorf("Use of a held permit: %v", err)
	}
	snap, err := s.Snapshot(t.Context())
	if err != nil || snap.Held != 2 || len(snap.Waiters) != 0 {
		t.Errorf("%d held, %d wait, error %v; want 2 and none", snap.Held, len(snap.Waiters), err)
	}
	if err := s.SetCapacity(t.Context(), 2); err != nil {
		t.Errorf("SetCapacity: %v", err)
	}
	if err := s.SetCapacity(t.Context(), 0); err != nil {
		t.Errorf("SetCapacity: %v", err)
	}
	memory("0")
	p, err := s.Acquire(t.Context())
	if err != nil {
		t.Fatalf("with memory again: %v", err)
	}
	release(p)
	release(granted)
	memory("1")
	for _, s := range []*semaphore.Semaphore{s, other} {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if left := c.Exists(t.Context(), "passbuddy-"+cfg.Name).Val(); left != 0 {
		t.Error("permits are left after Close")
	}
}

// The address moves to the promoted replica while the old primary lives on, as at a planned
// failover of a managed Redis. The subscription follows. So a newcomer that comes first after a
// loss of state sees who holds permits.
func TestDemotedPrimaryLivesOn(t *testing.T) {
	t.Parallel() // it mostly waits
	r := startReplicated(t)
	cfg := semaphore.Config{Name: t.Name(), Capacity: 3, TTL: 6 * time.Second}
	s := r.session(t, cfg)
	permits := take(t, s, 3)
	if err := r.replica.Follow(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := r.primary.Follow(t.Context(), r.replica.Addr()); err != nil {
		t.Fatal(err)
	}
	r.proxy.Retarget(r.replica.Addr()) // Existing connections stay.
	c := redis.NewClient(r.replica.Options())
	t.Cleanup(func() { _ = c.Close() })
	eventually(t, time.Minute, func() (bool, string) {
		sharded, plain := c.PubSubShardChannels(t.Context(), "*").Val(),
			c.PubSubChannels(t.Context(), "*").Val()
		return len(sharded)+len(plain) > 0, "no subscription at the new primary"
	})
	if n := held(permits); n != 3 {
		t.Fatalf("%d of 3 leases survive", n)
	}
	if err := c.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	more := take(t, open(t, r.replica.URL(), cfg), 3)
	if n := held(permits) + held(more); n > 3 {
		t.Errorf("%d permits are held of 3", n)
	}
}

// Open refuses a node of a Cluster, even if the node owns the name's slot.
func TestOpenAtANodeOfACluster(t *testing.T) {
	t.Parallel() // it mostly waits
	c, err := throwaway.StartRedisCluster(t.Context(), throwaway.RedisClusterOptions{Replicas: -1})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	for i := range 6 {
		s, err := semaphore.Open(t.Context(), "redis://"+c.Nodes()[0].Addr(),
			semaphore.Config{Name: fmt.Sprint("n", i)})
		if err == nil {
			_ = s.Close()
			t.Errorf("n%d: joined a Cluster through a client that cannot follow it", i)
		} else if !strings.Contains(err.Error(), "ClusterClient") {
			t.Errorf("n%d: %v, want an error that names the right function", i, err)
		}
	}
	cc := redis.NewClusterClient(c.Options())
	t.Cleanup(func() { _ = cc.Close() })
	s, err := semaphore.New(context.Background(), struct{ *redis.ClusterClient }{cc},
		semaphore.Config{Name: t.Name(), Capacity: 2, TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if n := len(take(t, s, 3)); n != 2 {
		t.Errorf("%d permits of 2 through a struct around a ClusterClient", n)
	}
}
