package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Redis loses its state under load: all keys, or one key of the semaphore's, or because another
// server takes its place. There are never more permits than the capacity, holders keep their
// permits, and after a while Redis grants new ones.
func TestStateLoss(t *testing.T) {
	t.Parallel() // it mostly waits
	const sessions, capacity = 3, 6
	cfg := semaphore.Config{Name: t.Name(), Capacity: capacity, TTL: 5 * time.Second}
	r, c := startRedis(t)
	proxy, err := throwaway.StartProxy(r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	var clients []redis.UniversalClient
	for range sessions {
		clients = append(clients, dial(t, proxy.Addr()))
	}
	h := drive(t, cfg, 4, 10*time.Millisecond, clients...)

	var longest time.Duration
	lose := func(name string, event func(ctx context.Context) error) {
		h.flows()
		judge := h.watchKeepers()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if err := event(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		happened := time.Now()
		took := h.next(happened)
		longest = max(longest, took)
		t.Logf("%s (%v): the next new grant after %v", name,
			happened.Sub(began).Round(time.Millisecond), took.Round(time.Millisecond))
		h.flows()
		judge(name)
	}

	for _, key := range subset.Of(t, 6,
		redisscript.NewKeys(semaphore.DefaultPrefix+"-"+cfg.Name).All()) {
		lose("DEL "+key, func(ctx context.Context) error { return c.Del(ctx, key).Err() })
	}
	lose("FLUSHALL", func(ctx context.Context) error { return c.FlushAll(ctx).Err() })
	lose("kill -9 and restart, without persistence", func(ctx context.Context) error {
		r.Kill()
		return r.Restart(ctx)
	})
	lose("failover to an empty server", func(ctx context.Context) error {
		other, err := throwaway.StartRedis(ctx, throwaway.RedisOptions{})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = other.Stop() })
		proxy.Retarget(other.Addr())
		proxy.Reset()
		return nil
	})
	t.Logf("longest until the next new grant: %v, TTL %v", longest.Round(time.Millisecond), cfg.TTL)
	h.safe()
}

// A semaphore that no session has used yet does not wait for re-assertions after a loss of state.
// The first acquire is granted, and costs one call.
func TestANewSemaphoreGrantsAtOnce(t *testing.T) {
	_, c := startRedis(t)
	other := join(t, c, 1) // so that the server knows the scripts
	p, err := other.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := semaphore.New(context.Background(), c, semaphore.Config{Name: "new", TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	before := scriptCalls(t, c)
	if _, err := s.TryAcquire(t.Context()); err != nil {
		t.Fatalf("a new semaphore does not grant at once: %v", err)
	}
	if n := scriptCalls(t, c) - before; n != 1 {
		t.Errorf("the first acquire took %d calls, want 1", n)
	}
}

// scriptCalls returns how many scripts Redis was asked to run.
func scriptCalls(t *testing.T, c *redis.Client) (calls int) {
	t.Helper()
	for line := range strings.Lines(c.Info(t.Context(), "commandstats").Val()) {
		var n int
		for _, command := range []string{"eval", "evalsha"} {
			if _, err := fmt.Sscanf(line, "cmdstat_"+command+":calls=%d,", &n); err == nil {
				calls += n
			}
		}
	}
	if calls == 0 {
		t.Fatal("INFO commandstats shows no scripts")
	}
	return calls
}

// The clock of Redis's host is set an hour forward and then an hour back, under load, just after a
// process was killed. No live holder loses a permit, and the permits of the killed process are free
// after their leases.
func TestClockOfRedisIsSet(t *testing.T) {
	t.Parallel() // it mostly waits
	const sessions, capacity, dead = 2, 6, 2
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{Clock: true})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	cfg := semaphore.Config{Name: t.Name(), Capacity: capacity, TTL: 2 * time.Second}
	h := drive(t, cfg, 4, 10*time.Millisecond, dial(t, r.Addr()), dial(t, r.Addr()))
	for _, step := range []time.Duration{time.Hour, -2 * time.Hour} {
		h.flows()
		judge := h.watchKeepers()
		w := start(t, job{
			Redis: r.URL(), Semaphore: cfg.Name, Capacity: capacity, TTL: cfg.TTL,
			Integration: "semaphore", Goroutines: dead,
			Load: time.Hour, MinQuery: time.Hour, MaxQuery: time.Hour,
		})
		w.joined(t)
		heldElsewhere := func() int {
			ours := make(map[string]bool)
			for _, s := range h.sessions {
				ours[s.NewPermit().ID()[:18]] = true
			}
			snap, err := h.sessions[0].Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, holder := range snap.Holders {
				if !ours[holder.Session] {
					n += len(holder.Permits)
				}
			}
			return n
		}
		eventually(t, time.Minute, func() (bool, string) {
			n := heldElsewhere()
			return n == dead, fmt.Sprintf("the other process holds %d permits", n)
		})
		if err := w.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		if err := r.StepClock(step); err != nil {
			t.Fatal(err)
		}
		next := h.next(time.Now())
		eventually(t, time.Minute, func() (bool, string) {
			n := heldElsewhere()
			return n == 0, fmt.Sprintf("the killed process still holds %d permits", n)
		})
		t.Logf("clock set by %v: the next new grant after %v, the killed process's leases had "+
			"ended after %v, TTL %v",
			step, next.Round(time.Millisecond), time.Since(killed).Round(time.Millisecond), cfg.TTL)
		judge(fmt.Sprintf("clock set by %v", step))
	}
	if _, err := h.sessions[0].TryAcquire(t.Context()); err != nil &&
		!errors.Is(err, semaphore.ErrCapacity) {
		t.Error(err)
	}
	h.safe()
}

// dial returns a client of the server at addr.
func dial(t testing.TB, addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}
