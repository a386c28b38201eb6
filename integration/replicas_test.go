package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// replicated is a primary with a replica. Clients reach whoever is the primary by one address.
type replicated struct {
	primary, replica *throwaway.Redis
	proxy            *throwaway.Proxy
}

func startReplicated(t *testing.T) *replicated {
	t.Helper()
	r := &replicated{}
	var c *redis.Client
	r.primary, c = startRedis(t)
	r.replica = replicaOf(t, r.primary)
	eventually(t, time.Minute, func() (bool, string) { // it is in sync, but takes a second until it acknowledges for the first time
		n, err := c.Wait(t.Context(), 1, time.Second).Result()
		return n == 1, fmt.Sprintf("%d replicas acknowledge, error %v", n, err)
	})
	var err error
	if r.proxy, err = throwaway.StartProxy(r.primary.Addr()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.proxy.Close() })
	return r
}

func replicaOf(t *testing.T, primary *throwaway.Redis) *throwaway.Redis {
	t.Helper()
	replica, err := primary.StartReplica(t.Context(), throwaway.RedisOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = replica.Stop() })
	return replica
}

func (r *replicated) session(t *testing.T, cfg semaphore.Config) *semaphore.Semaphore {
	t.Helper()
	s, err := semaphore.New(context.Background(), dial(t, r.proxy.Addr()), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// failover kills the primary and has the replica take its place, with a replica of its own.
func (r *replicated) failover(t *testing.T) {
	t.Helper()
	r.primary.Kill()
	if err := r.replica.Follow(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	r.proxy.Retarget(r.replica.Addr())
	r.proxy.Reset()
	replicaOf(t, r.replica)
}

// A process starts while its replica is away for a moment, and joins when the replica is back.
func TestWaitReplicasJoinsLater(t *testing.T) {
	t.Parallel() // it mostly waits
	r := startReplicated(t)
	if err := r.replica.CutReplication(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := make(chan error, 1)
	time.AfterFunc(time.Second, func() { healed <- r.replica.HealReplication(context.Background()) })
	s, err := semaphore.New(context.Background(), dial(t, r.proxy.Addr()), semaphore.Config{Name: t.Name(), WaitReplicas: 1})
	if err != nil {
		t.Errorf("New: %v", err)
	} else {
		_ = s.Close()
	}
	if err := <-healed; err != nil {
		t.Fatal(err)
	}
}

// Without a replica that acknowledges, nothing is granted, and what is held ends with its lease.
func TestWaitReplicasWithoutReplica(t *testing.T) {
	t.Parallel() // it mostly waits
	r := startReplicated(t)
	cfg := semaphore.Config{Name: t.Name(), Capacity: 2, TTL: 5 * time.Second, WaitReplicas: 1, MaxAttempts: -1}
	a, b := r.session(t, cfg), r.session(t, cfg)
	p, err := a.Acquire(t.Context())
	if err != nil {
		t.Fatalf("with a replica: %v", err)
	}
	if err := r.replica.CutReplication(t.Context()); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), cfg.TTL+time.Second)
	defer cancel()
	granted := make(chan error, 1)
	go func() {
		_, err := b.Acquire(ctx)
		granted <- err
	}()
	if _, err := b.TryAcquire(t.Context()); !errors.Is(err, semaphore.ErrUnavailable) {
		t.Errorf("TryAcquire without a replica: %v, want ErrUnavailable", err)
	}
	select {
	case <-p.Lost():
		t.Logf("the lease ended %v after replication, TTL %v", time.Since(cut).Round(time.Millisecond), cfg.TTL)
	case <-time.After(time.Minute):
		t.Error("a lease goes on that no replica knows of")
	}
	if err := <-granted; !errors.Is(err, semaphore.ErrUnavailable) {
		t.Errorf("Acquire without a replica: %v, want ErrUnavailable", err)
	}
	if err := r.replica.HealReplication(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := b.AcquireN(ctx, cfg.Capacity); err != nil {
		t.Fatalf("with the replica back: %v", err)
	}
	t.Logf("the next grant %v after replication was healed", time.Since(healed).Round(time.Millisecond))
}

// A failover to the replica that acknowledged, under load, forgets no grant.
func TestWaitReplicasFailover(t *testing.T) {
	t.Parallel() // it mostly waits
	r := startReplicated(t)
	cfg := semaphore.Config{Name: t.Name(), Capacity: 5, TTL: 5 * time.Second, WaitReplicas: 1}
	var clients []redis.UniversalClient
	for range 3 {
		clients = append(clients, dial(t, r.proxy.Addr()))
	}
	h := drive(t, cfg, 4, 200*time.Millisecond, clients...) // long enough to be seen, should it be forgotten
	h.flows()
	r.failover(t)
	happened := time.Now()
	h.flows()
	t.Logf("the next new grants %v after the failover", time.Since(happened).Round(time.Millisecond))
	if lost := h.lostByKeepers(); lost > 0 {
		t.Errorf("%d permits were lost by those who held them", lost)
	}
	h.safe()
}

// What WaitReplicas is for: all permits are acquired while the replica is cut off, and then it takes over. Without WaitReplicas they are forgotten, and
// granted again while their holder still believes in them. With it they had not been granted in the first place.
func TestFailoverToAReplicaThatLagged(t *testing.T) {
	for _, replicas := range []int{0, 1} {
		t.Run(fmt.Sprintf("WaitReplicas-%d", replicas), func(t *testing.T) {
			t.Parallel() // they mostly wait
			r := startReplicated(t)
			// With this TTL no heartbeat tells the holder before the test has looked.
			cfg := semaphore.Config{Name: t.Name(), Capacity: 3, TTL: 30 * time.Second, WaitReplicas: replicas, MaxAttempts: -1}
			a, b := r.session(t, cfg), r.session(t, cfg)
			if err := r.replica.AwaitSync(t.Context(), r.primary); err != nil {
				t.Fatal(err)
			}
			if err := r.replica.CutReplication(t.Context()); err != nil {
				t.Fatal(err)
			}
			held := 0
			take := func(s *semaphore.Semaphore, patience time.Duration) (permits []*semaphore.Permit) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				for range cfg.Capacity {
					if p, err := s.Acquire(ctx); err == nil {
						permits = append(permits, p)
					}
				}
				return permits
			}
			early := take(a, time.Second)
			r.failover(t)
			late := take(b, 10*time.Second)
			for _, p := range append(early, late...) {
				if p.Held() {
					held++
				}
			}
			t.Logf("%d granted without the replica, %d after it took over, %d held together, capacity %d", len(early), len(late), held, cfg.Capacity)
			switch {
			case replicas > 0 && len(early) > 0:
				t.Errorf("%d were granted that no replica knew of", len(early))
			case replicas > 0 && held > cfg.Capacity:
				t.Errorf("%d are held together, capacity %d", held, cfg.Capacity)
			case len(late) == 0:
				t.Error("nothing is granted after the failover")
			case replicas == 0 && held <= cfg.Capacity:
				t.Errorf("%d are held together: this failover forgets nothing, so that the other case proves nothing", held)
			}
		})
	}
}
