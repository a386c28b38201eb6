package throwaway

import (
	"context"
	"fmt"
	"slices"
)

// Slot returns the hash slot of a key.
func (c *RedisCluster) Slot(ctx context.Context, key string) (int, error) {
	for _, node := range c.nodes {
		if !node.serving() {
			continue
		}
		client := node.admin()
		defer client.Close()
		slot, err := client.ClusterKeySlot(ctx, key).Result()
		if err != nil {
			return 0, fmt.Errorf("throwaway: %w", err)
		}
		return int(slot), nil
	}
	return 0, errNotRunning
}

// Owner returns the primary that owns the slot, according to all running nodes. It waits until they
// agree.
func (c *RedisCluster) Owner(ctx context.Context, slot int) (*Redis, error) {
	owner, _, err := c.family(ctx, slot)
	return owner, err
}

// OwnerOf returns the primary that owns the slot of a key.
func (c *RedisCluster) OwnerOf(ctx context.Context, key string) (*Redis, error) {
	slot, err := c.Slot(ctx, key)
	if err != nil {
		return nil, err
	}
	return c.Owner(ctx, slot)
}

// ReplicasOf returns the replicas of the slot's owner.
func (c *RedisCluster) ReplicasOf(ctx context.Context, slot int) ([]*Redis, error) {
	_, replicas, err := c.family(ctx, slot)
	return replicas, err
}

func (c *RedisCluster) family(
	ctx context.Context, slot int,
) (owner *Redis, replicas []*Redis, err error) {
	clients := c.clients()
	defer clients.close()
	err = await(ctx, fmt.Sprintf("owner of slot %d", slot), func(ctx context.Context) string {
		view, amiss := c.agreed(ctx, clients)
		if amiss != "" {
			return amiss
		}
		owns := view.owner(slot)
		if owns == nil {
			return "no node has it"
		}
		if owner = c.node(owns.addr); owner == nil {
			return "an unknown node has it: " + owns.addr
		}
		replicas = nil
		for _, n := range view {
			if replica := c.node(n.addr); n.primary == owns.id && replica != nil {
				replicas = append(replicas, replica)
			}
		}
		return ""
	})
	return owner, replicas, err
}

func (c *RedisCluster) node(addr string) *Redis {
	if i := slices.IndexFunc(c.nodes, func(r *Redis) bool { return r.Addr() == addr }); i >= 0 {
		return c.nodes[i]
	}
	return nil
}

// KillOwner ends the slot's owner with SIGKILL and returns it, for AwaitFailover and Restart.
func (c *RedisCluster) KillOwner(ctx context.Context, slot int) (*Redis, error) {
	owner, err := c.Owner(ctx, slot)
	if err != nil {
		return nil, err
	}
	owner.Kill()
	return owner, nil
}

// Failover has a replica of the slot's owner take over in good order, without loss, and returns the
// old owner.
func (c *RedisCluster) Failover(ctx context.Context, slot int) (*Redis, error) {
	owner, replicas, err := c.family(ctx, slot)
	if err != nil {
		return nil, err
	}
	for _, replica := range replicas {
		if replica.serving() {
			_, err := replica.do(ctx, "CLUSTER", "FAILOVER")
			return owner, err
		}
	}
	return nil, fmt.Errorf("throwaway: slot %d has no replica that runs", slot)
}

// AwaitFailover waits until another node than old owns the slot, all running nodes agree, and the
// cluster is well.
func (c *RedisCluster) AwaitFailover(ctx context.Context, slot int, old *Redis) (*Redis, error) {
	clients := c.clients()
	defer clients.close()
	var owner *Redis
	err := await(ctx, fmt.Sprintf("failover of slot %d", slot), func(ctx context.Context) string {
		view, amiss := c.agreed(ctx, clients)
		if amiss != "" {
			return amiss
		}
		owns := view.owner(slot)
		if owns == nil || owns.addr == old.Addr() {
			return "no node took it over"
		}
		owner = c.node(owns.addr)
		return ""
	})
	return owner, err
}
