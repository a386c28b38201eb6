package throwaway

import (
	"context"
	"errors"
	"testing"
	"time"
)

func startReplica(t *testing.T, primary *Redis, opts RedisOptions) *Redis {
	t.Helper()
	replica, err := primary.StartReplica(testContext(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := replica.Stop(); err != nil {
			t.Error("Stop:", err)
		}
	})
	return replica
}

func awaitSync(t *testing.T, replica, primary *Redis) {
	t.Helper()
	if err := replica.AwaitSync(testContext(t), primary); err != nil {
		t.Fatal(err)
	}
}

func expectPrimary(t *testing.T, r *Redis, want bool) {
	t.Helper()
	if is, err := r.IsPrimary(testContext(t)); is != want || err != nil {
		t.Errorf("%s considers itself a primary: %v, %v; want %v", r.Addr(), is, err, want)
	}
}

func TestReplicaFollows(t *testing.T) {
	for name, opts := range map[string]RedisOptions{
		"open":     {},
		"password": {Password: `a "quoted" pass`},
		"TLS":      {TLS: newAuthority(t)},
		"TLS, ACL, pw": {TLS: newAuthority(t), ACL: []string{"user app on >x ~* +@all"},
			Password: "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			primary := startRedis(t, opts)
			set(t, clientOf(t, primary), "key", "before")
			replica := startReplica(t, primary, RedisOptions{})
			expectKey(t, clientOf(t, replica), "key", "before")
			expectPrimary(t, primary, true)
			expectPrimary(t, replica, false)

			if err := replica.CutReplication(ctx); err != nil {
				t.Fatal(err)
			}
			set(t, clientOf(t, primary), "key", "while cut")
			expectKey(t, clientOf(t, replica), "key", "before")
			if err := replica.HealReplication(ctx); err != nil {
				t.Fatal(err)
			}
			awaitSync(t, replica, primary)
			expectKey(t, clientOf(t, replica), "key", "while cut")
		})
	}
}

func TestReplicaThroughAProxy(t *testing.T) {
	ctx := testContext(t)
	primary, replica := startRedis(t, RedisOptions{}), startRedis(t, RedisOptions{})
	p := startProxy(t, primary.Addr())
	if err := replica.Follow(ctx, p.Addr()); err != nil {
		t.Fatal(err)
	}
	awaitSync(t, replica, primary)
	p.Stall()
	set(t, clientOf(t, primary), "key", "value")
	expectKey(t, clientOf(t, replica), "key", "")
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := replica.AwaitSync(short, primary); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AwaitSync while the link is stalled: %v", err)
	}
	p.Resume()
	awaitSync(t, replica, primary)
	expectKey(t, clientOf(t, replica), "key", "value")

	if err := replica.Restart(ctx); err != nil { // It keeps following, and gets the data anew.
		t.Fatal(err)
	}
	awaitSync(t, replica, primary)
	expectKey(t, clientOf(t, replica), "key", "value")

	if err := replica.Follow(ctx, ""); err != nil {
		t.Fatal(err)
	}
	expectPrimary(t, replica, true)
	expectKey(t, clientOf(t, replica), "key", "value")
}
