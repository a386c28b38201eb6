package throwaway

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

func startRedisCluster(t *testing.T, opts RedisClusterOptions) *RedisCluster {
	t.Helper()
	c, err := StartRedisCluster(testContext(t), opts)
	skipIfMissing(t, err)
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error("Stop:", err)
		}
	})
	return c
}

func clusterClient(t *testing.T, c *RedisCluster) *redis.ClusterClient {
	t.Helper()
	client := redis.NewClusterClient(c.Options())
	t.Cleanup(func() { client.Close() })
	return client
}

func ownerOf(t *testing.T, c *RedisCluster, key string) *Redis {
	t.Helper()
	owner, err := c.OwnerOf(testContext(t), key)
	if err != nil {
		t.Fatal(err)
	}
	return owner
}

// otherPrimary returns a primary that does not own the slot of the key.
func otherPrimary(t *testing.T, c *RedisCluster, key string) *Redis {
	t.Helper()
	owner := ownerOf(t, c, key)
	for _, node := range c.Nodes() {
		if is, err := node.IsPrimary(testContext(t)); err == nil && is && node != owner {
			return node
		}
	}
	t.Fatal("no other primary")
	return nil
}

func TestRedisClusterFailover(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startRedisCluster(t, RedisClusterOptions{Redis: RedisOptions{Password: "secret"}})
	client := clusterClient(t, c)
	const key = "{tag}:key"
	set(t, client, key, "value")
	slot, err := c.Slot(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	owner := ownerOf(t, c, "{tag}")
	replicas, err := c.ReplicasOf(ctx, slot)
	if err != nil || len(replicas) != 1 {
		t.Fatalf("replicas: %v, %v", replicas, err)
	}
	awaitSync(t, replicas[0], owner)

	killed, err := c.KillOwner(ctx, slot)
	if err != nil || killed != owner {
		t.Fatalf("killed %v: %v", killed, err)
	}
	promoted, err := c.AwaitFailover(ctx, slot, killed)
	if err != nil {
		t.Fatal(err)
	}
	if promoted != replicas[0] {
		t.Errorf("promoted %s, want the replica %s", promoted.Addr(), replicas[0].Addr())
	}
	// Otherwise the client asks the node that it knew, for as long as it takes to notice.
	client.ReloadState(ctx)
	expectKey(t, client, key, "value")

	if err := killed.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitOK(ctx); err != nil {
		t.Fatal(err)
	}
	awaitSync(t, killed, promoted)
	if err := killed.CutReplication(ctx); err != nil { // as with any replica
		t.Fatal(err)
	}
	if err := killed.HealReplication(ctx); err != nil {
		t.Fatal(err)
	}
	awaitSync(t, killed, promoted)
	if old, err := c.Failover(ctx, slot); err != nil || old != promoted {
		t.Fatalf("Failover from %v: %v", old, err)
	}
	if back, err := c.AwaitFailover(ctx, slot, promoted); err != nil || back != owner {
		t.Errorf("after an orderly failover %v owns the slot: %v", back, err)
	}
	expectKey(t, client, key, "value")
}

func TestRedisClusterMigratesASlot(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startRedisCluster(t, RedisClusterOptions{Replicas: -1,
		Redis: RedisOptions{TLS: newAuthority(t)}})
	client := clusterClient(t, c)
	const n = 250
	key := func(i int) string { return fmt.Sprintf("{tag}:%d", i) }
	for i := range n {
		set(t, client, key(i), itoa(i))
	}
	slot, err := c.Slot(ctx, key(0))
	if err != nil {
		t.Fatal(err)
	}
	from, to := ownerOf(t, c, key(0)), otherPrimary(t, c, key(0))

	m, err := c.BeginMigration(ctx, slot, to)
	if err != nil {
		t.Fatal(err)
	}
	if moved, err := m.MoveKeys(ctx, 110); moved != 110 || err != nil {
		t.Fatalf("moved %d keys, %v", moved, err)
	}
	// Half of the keys are here, half there: a client that follows ASK finds all.
	for i := range n {
		expectKey(t, client, key(i), itoa(i))
	}
	keys := make([]string, n)
	for i := range keys {
		keys[i] = key(i)
	}
	if err := clientOf(t, from).MGet(ctx, keys...).Err(); err == nil ||
		!strings.HasPrefix(err.Error(), "TRYAGAIN") {
		t.Errorf("a command on keys of both nodes: %v", err)
	}
	if moved, err := m.MoveKeys(ctx, -1); moved != n-110 || err != nil {
		t.Fatalf("moved %d keys more, %v", moved, err)
	}
	if err := m.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if owner := ownerOf(t, c, key(0)); owner != to {
		t.Errorf("%s owns the slot, want %s", owner.Addr(), to.Addr())
	}
	for i := range n {
		expectKey(t, client, key(i), itoa(i))
	}

	if err := c.MigrateSlot(ctx, slot, from); err != nil {
		t.Fatal(err)
	}
	if owner := ownerOf(t, c, key(0)); owner != from {
		t.Errorf("%s owns the slot, want it back at %s", owner.Addr(), from.Addr())
	}
	expectKey(t, client, key(0), "0")
	if _, err := c.BeginMigration(ctx, slot, from); err == nil {
		t.Error("a migration to the owner was begun")
	}

	if err := from.RestartEmpty(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitOK(ctx); err != nil {
		t.Fatal(err)
	}
	if owner := ownerOf(t, c, key(0)); owner != from {
		t.Errorf("%s owns the slot of a primary that lost its data", owner.Addr())
	}
	expectKey(t, client, key(0), "")
}

func TestRedisClusterThroughProxies(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startRedisCluster(t, RedisClusterOptions{Replicas: -1})
	var proxies Proxies
	defer func() {
		if err := proxies.Close(); err != nil {
			t.Error("Close:", err)
		}
	}()
	opts := c.Options()
	opts.Dialer, opts.MaxRedirects, opts.MaxRetries = proxies.Dial, -1, -1
	client := redis.NewClusterClient(opts)
	defer client.Close()
	set(t, client, "key", "value")
	proxy, err := proxies.To(ownerOf(t, c, "key").Addr())
	if err != nil {
		t.Fatal(err)
	}
	proxy.Cut()
	if err := client.Get(ctx, "key").Err(); err == nil {
		t.Error("the owner answered through a proxy that is cut")
	}
	proxy.Heal()
	expectKey(t, client, "key", "value")

	// A subscriber is told when its slot leaves the node that it is connected to, and gets no more
	// messages.
	if err := client.SPublish(ctx, "{tag}", "").Err(); err != nil &&
		strings.Contains(err.Error(), "unknown command") {
		t.Skip("this Redis has no sharded pub/sub: ", err)
	}
	subscription := client.SSubscribe(ctx, "{tag}")
	defer subscription.Close()
	for _, want := range []string{"ssubscribe", "sunsubscribe"} {
		got, err := subscription.ReceiveTimeout(ctx, testDeadline)
		if told, ok := got.(*redis.Subscription); !ok || told.Kind != want {
			t.Fatalf("the subscriber received %v, %v; want %s", got, err, want)
		}
		if want == "sunsubscribe" {
			break
		}
		slot, err := c.Slot(ctx, "{tag}")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.MigrateSlot(ctx, slot, otherPrimary(t, c, "{tag}")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParseClusterNodes(t *testing.T) {
	view, err := parseClusterNodes(
		"a1 :7000@17000 myself,master - 0 0 1 connected 0-99 5000 [12->-b2]\n" +
			"b2 127.0.0.1:7001@17001,host master,fail? - 0 1 2 connected 100-200\n" +
			"c3 127.0.0.1:7002@17002 slave a1 0 1 1 connected\n")
	if err != nil {
		t.Fatal(err)
	}
	want := clusterView{
		{id: "a1", addr: "127.0.0.1:7000", flags: []string{"myself", "master"},
			slots: []slotRange{{0, 99}, {5000, 5000}}},
		{id: "b2", addr: "127.0.0.1:7001", flags: []string{"master", "fail?"},
			slots: []slotRange{{100, 200}}},
		{id: "c3", addr: "127.0.0.1:7002", flags: []string{"slave"}, primary: "a1"},
	}
	if !reflect.DeepEqual(view, want) {
		t.Errorf("view\n%+v, want\n%+v", view, want)
	}
	for slot, id := range map[int]string{0: "a1", 99: "a1", 5000: "a1", 150: "b2"} {
		if owner := view.owner(slot); owner == nil || owner.id != id {
			t.Errorf("slot %d is owned by %v, want %s", slot, owner, id)
		}
	}
	if owner := view.owner(12000); owner != nil {
		t.Errorf("a slot without an owner is owned by %v", owner)
	}
	for _, text := range []string{"short line\n", "a :1@2 master - 0 0 1 connected x-y\n"} {
		if _, err := parseClusterNodes(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
