package throwaway

import (
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"
)

func startSentinel(t *testing.T, opts SentinelOptions) *Sentinel {
	t.Helper()
	s, err := StartSentinel(testContext(t), opts)
	skipIfMissing(t, err)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error("Stop:", err)
		}
	})
	return s
}

func TestSentinelPromotesAndDemotes(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := startSentinel(t, SentinelOptions{Redis: RedisOptions{Password: "secret"}})
	client := redis.NewFailoverClient(s.FailoverOptions())
	defer client.Close()
	set(t, client, "key", "kept")
	first, err := s.Primary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Servers()[1:] {
		awaitSync(t, r, first)
	}

	killed, err := s.KillPrimary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if killed != first || killed.PID() != 0 {
		t.Errorf("killed %s, which runs as %d; the primary was %s", killed.Addr(), killed.PID(),
			first.Addr())
	}
	second, err := s.AwaitFailover(ctx, killed)
	if err != nil {
		t.Fatal(err)
	}
	if second == first || !slices.Contains(s.Servers(), second) {
		t.Fatalf("promoted %s after %s", second.Addr(), first.Addr())
	}
	fresh := redis.NewUniversalClient(s.UniversalOptions())
	defer fresh.Close()
	expectKey(t, fresh, "key", "kept")
	set(t, fresh, "key", "changed")
	expectKey(t, client, "key", "changed")

	if err := killed.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitWhole(ctx); err != nil {
		t.Fatal(err)
	}
	expectPrimary(t, killed, false)
	awaitSync(t, killed, second)
	expectKey(t, clientOf(t, killed), "key", "changed")

	old, err := s.Failover(ctx)
	if err != nil || old != second {
		t.Fatalf("Failover from %v: %v", old, err)
	}
	if _, err := s.AwaitFailover(ctx, old); err != nil {
		t.Fatal(err)
	}
}

func TestSentinelFailoverLosesWhatWasNotReplicated(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := startSentinel(t, SentinelOptions{Replicas: 1, Redis: RedisOptions{TLS: newAuthority(t)}})
	primary, replica := s.Servers()[0], s.Servers()[1]
	set(t, clientOf(t, primary), "early", "yes")
	awaitSync(t, replica, primary)
	if err := replica.CutReplication(ctx); err != nil {
		t.Fatal(err)
	}
	set(t, clientOf(t, primary), "late", "yes")
	if err := primary.Pause(ctx); err != nil { // The sentinels consider it dead.
		t.Fatal(err)
	}
	promoted, err := s.AwaitFailover(ctx, primary)
	if err != nil {
		t.Fatal(err)
	}
	if promoted != replica {
		t.Fatalf("promoted %s", promoted.Addr())
	}
	client := clientOf(t, promoted)
	expectKey(t, client, "early", "yes")
	expectKey(t, client, "late", "")
}
