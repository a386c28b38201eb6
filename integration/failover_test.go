package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// pushesOnly is the Config of semaphores for handsOver: no waiter retries by itself while the test
// lasts.
func pushesOnly(name string, capacity int) semaphore.Config {
	return semaphore.Config{Name: name, Capacity: capacity, TTL: 5 * time.Second,
		RetryInterval: 10 * time.Second, MaxAttempts: -1}
}

// severalURL is a URL for semaphore.Open that has several addresses.
func severalURL(addrs []string, options ...string) string {
	for _, addr := range addrs[1:] {
		options = append(options, "addr="+addr)
	}
	return "redis://" + addrs[0] + "?" + strings.Join(options, "&")
}

// Sentinels replace the primary under load: after a kill, and in good order. With WaitReplicas no
// grant is forgotten, so there are never more permits than the capacity. The semaphore goes on,
// pushes included.
func TestSentinelFailover(t *testing.T) {
	t.Parallel() // it mostly waits
	s, err := throwaway.StartSentinel(t.Context(), throwaway.SentinelOptions{})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	clients := make([]redis.UniversalClient, 3)
	for i := range clients {
		if i%2 == 0 {
			clients[i] = redis.NewFailoverClient(s.FailoverOptions())
		} else {
			clients[i] = redis.NewUniversalClient(s.UniversalOptions())
		}
		t.Cleanup(func() { _ = clients[i].Close() })
	}
	h := drive(t, semaphore.Config{Name: t.Name(), Capacity: 4, TTL: 5 * time.Second,
		WaitReplicas: 1}, 3, 10*time.Millisecond, clients[:2]...)
	var idle [2]*semaphore.Semaphore // Only pushes wake these.
	if idle[0], err = semaphore.New(context.Background(), clients[2],
		pushesOnly(t.Name()+"-pushes", 2)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = idle[0].Close() })
	idle[1] = open(t, severalURL(s.Addrs(), "master_name="+throwaway.MasterName),
		pushesOnly(t.Name()+"-pushes", 2))

	for _, way := range []struct {
		name string
		out  func(context.Context) (*throwaway.Redis, error)
	}{{"primary killed", s.KillPrimary}, {"orderly failover", s.Failover}} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.AwaitWhole(ctx); err != nil {
			t.Fatal(err)
		}
		h.flows()
		old, err := way.out(ctx)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := s.AwaitFailover(ctx, old); err != nil {
			t.Fatal(err)
		}
		replaced := time.Now()
		next := h.next(replaced)
		t.Logf("%s: replaced after %v, the next new grant %v later", way.name,
			replaced.Sub(began).Round(time.Millisecond), next.Round(time.Millisecond))
		handsOver(t, idle[0], idle[1], 2)
		handsOver(t, idle[1], idle[0], 2)
		if err := old.Restart(ctx); err != nil {
			t.Fatal(err)
		}
	}
	h.safe()
}

// A Cluster of three primaries and three replicas, under load. The slot moves to another primary,
// then a replica takes over in good order, then the owner is killed. Two semaphores are in two
// slots of one node. The one with WaitReplicas must stay within its capacity throughout. The other
// may exceed it after the kill, for no longer than a lease. Both go on, pushes included.
func TestCluster(t *testing.T) {
	t.Parallel() // it mostly waits
	c, err := throwaway.StartRedisCluster(t.Context(), throwaway.RedisClusterOptions{})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	client := func() redis.UniversalClient {
		cc := redis.NewClusterClient(c.Options())
		t.Cleanup(func() { _ = cc.Close() })
		return cc
	}

	// Three names in different slots of one owner.
	var names []string
	var slots []int
	var owner *throwaway.Redis
	for i := 0; len(names) < 3; i++ {
		name := fmt.Sprintf("%s-%d", t.Name(), i)
		slot, err := c.Slot(ctx, semaphore.DefaultPrefix+"-"+name)
		if err != nil {
			t.Fatal(err)
		}
		o, err := c.Owner(ctx, slot)
		if err != nil {
			t.Fatal(err)
		}
		if owner == nil || o == owner {
			owner, names, slots = o, append(names, name), append(slots, slot)
		}
	}
	const ttl = 5 * time.Second
	plain := drive(t, semaphore.Config{Name: names[0], Capacity: 4, TTL: ttl}, 3,
		10*time.Millisecond, client(), client())
	certain := drive(t, semaphore.Config{Name: names[1], Capacity: 4, TTL: ttl, WaitReplicas: 1}, 3,
		10*time.Millisecond, client(), client())
	var idle [2]*semaphore.Semaphore
	if idle[0], err = semaphore.New(context.Background(), client(),
		pushesOnly(names[2], 2)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = idle[0].Close() })
	idle[1] = open(t, severalURL(c.Addrs()), pushesOnly(names[2], 2))
	handsOver(t, idle[0], idle[1], 2)

	goesOn := func(name string, began time.Time) {
		happened := time.Now()
		first, second := plain.next(happened), certain.next(happened)
		t.Logf("%s: took %v, the next new grant %v later, with WaitReplicas %v",
			name, happened.Sub(began).Round(time.Millisecond),
			first.Round(time.Millisecond), second.Round(time.Millisecond))
		handsOver(t, idle[0], idle[1], 2)
		handsOver(t, idle[1], idle[0], 2)
		plain.flows()
		certain.flows()
	}

	var to *throwaway.Redis
	for _, n := range c.Nodes() {
		if primary, err := n.IsPrimary(ctx); err == nil && primary && n != owner {
			to = n
			break
		}
	}
	began := time.Now()
	for _, slot := range slots {
		if err := c.MigrateSlot(ctx, slot, to); err != nil {
			t.Fatal(err)
		}
	}
	goesOn("slots moved", began)

	began = time.Now()
	old, err := c.Failover(ctx, slots[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AwaitFailover(ctx, slots[0], old); err != nil {
		t.Fatal(err)
	}
	goesOn("orderly failover", began)
	if len(plain.over()) > 0 {
		t.Errorf("%d permits were held at once, capacity %d", plain.peak, plain.cfg.Capacity)
	}
	if err := c.AwaitOK(ctx); err != nil {
		t.Fatal(err)
	}

	began = time.Now()
	if old, err = c.KillOwner(ctx, slots[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AwaitFailover(ctx, slots[0], old); err != nil {
		t.Fatal(err)
	}
	// The killed server comes back as a replica: without a replica no write can be acknowledged.
	if err := old.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	goesOn("owner killed", began)
	for _, at := range plain.over() {
		if at.After(began.Add(ttl)) {
			t.Errorf("more permits than the capacity %v after the owner was killed", at.Sub(began))
		}
	}
	t.Logf("without WaitReplicas: %d grants beyond the capacity", len(plain.over()))
	certain.safe()
}
