package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// slotCount is how many hash slots every Redis Cluster has.
const slotCount = 16384

// RedisClusterOptions are the settings of a cluster. The zero value is the documented default.
type RedisClusterOptions struct {
	// Primaries is the number of primaries, at least 3. Default 3.
	Primaries int
	// Replicas is the number of replicas of each primary. Default 1; negative for none.
	Replicas int
	// NodeTimeout is how long a node may be silent before the others consider it down. Default 1 s.
	NodeTimeout time.Duration
	// Redis applies to all nodes alike.
	Redis RedisOptions
}

// RedisCluster is a running Redis Cluster. Its methods may be called from several goroutines,
// except that no two calls may change the owner of a slot at the same time.
type RedisCluster struct {
	opts  RedisClusterOptions
	nodes []*Redis // first those that were primaries at the start
}

// StartRedisCluster starts the nodes, joins them and shares the slots out evenly. It returns when
// all nodes report that the cluster is well and the replicas are in sync. That takes some 3 s, of
// which a node waits 2 by itself. ctx bounds the start only; the nodes run until Stop. The error
// wraps [ErrNotFound] when Redis is not installed.
func StartRedisCluster(ctx context.Context, opts RedisClusterOptions) (_ *RedisCluster, err error) {
	opts.Primaries = orDefault(opts.Primaries, 3)
	opts.Replicas = max(0, orDefault(opts.Replicas, 1))
	opts.NodeTimeout = orDefault(opts.NodeTimeout, time.Second)
	c := &RedisCluster{opts: opts, nodes: make([]*Redis, opts.Primaries*(1+opts.Replicas))}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if err := together(c.nodes, func(i int, _ *Redis) (err error) {
		c.nodes[i], err = launchRedis(ctx, c.nodeOptions(), clusterRedis)
		return err
	}); err != nil {
		return nil, err
	}
	if err := c.form(ctx); err != nil {
		return nil, fmt.Errorf("%w; the first node said:\n%s", err, c.nodes[0].Log())
	}
	return c, nil
}

func (c *RedisCluster) nodeOptions() RedisOptions {
	opts := c.opts.Redis
	opts.Config = append([]string{
		"cluster-enabled yes",
		// Not with the data: without this file a node would come back as a stranger, which no test
		// wants.
		"cluster-config-file ../nodes.conf",
		fmt.Sprintf("cluster-node-timeout %d", c.opts.NodeTimeout.Milliseconds()),
		// A replica may be promoted however long ago its replication was cut.
		"cluster-replica-validity-factor 0",
	}, opts.Config...)
	return opts
}

// form makes a cluster of the running nodes, as redis-cli --cluster create would.
func (c *RedisCluster) form(ctx context.Context) error {
	ids := make([]string, len(c.nodes))
	if err := together(c.nodes, func(i int, node *Redis) error {
		client := node.patient()
		defer client.Close()
		var err error
		if ids[i], err = client.Do(ctx, "CLUSTER", "MYID").Text(); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
		// The epochs differ from the start, so that the nodes need not negotiate. A node accepts
		// the command only while it knows no other node.
		if err := client.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
		if i < c.opts.Primaries {
			first, last := i*slotCount/c.opts.Primaries, (i+1)*slotCount/c.opts.Primaries-1
			if err := client.ClusterAddSlotsRange(ctx, first, last).Err(); err != nil {
				return fmt.Errorf("throwaway: %w", err)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := together(c.nodes, func(i int, node *Redis) error {
		for _, other := range c.nodes[:i] { // Gossip would do it from one introduction, but later.
			host, port, _ := net.SplitHostPort(other.Addr())
			if _, err := node.do(ctx, "CLUSTER", "MEET", host, port); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	replicas := c.nodes[c.opts.Primaries:]
	if err := together(replicas, func(i int, node *Redis) error {
		client := node.admin()
		defer client.Close()
		return await(ctx, "node "+node.Addr()+" to become a replica",
			func(ctx context.Context) string {
				if err := client.ClusterReplicate(ctx, ids[i%c.opts.Primaries]).Err(); err != nil {
					return err.Error() // mostly because it does not know that primary yet
				}
				return ""
			})
	}); err != nil {
		return err
	}
	if err := c.AwaitOK(ctx); err != nil {
		return err
	}
	return together(replicas, func(i int, node *Redis) error {
		return node.AwaitSync(ctx, c.nodes[i%c.opts.Primaries])
	})
}

// Nodes returns all nodes, first those that were primaries at the start.
func (c *RedisCluster) Nodes() []*Redis { return slices.Clone(c.nodes) }

// Addrs are the addresses of all nodes.
func (c *RedisCluster) Addrs() []string { return addrs(c.nodes) }

// Options returns the options for redis.NewClusterClient.
func (c *RedisCluster) Options() *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs: c.Addrs(), Password: c.opts.Redis.Password, TLSConfig: c.nodes[0].TLSConfig(),
	}
}

// AwaitOK waits until all running nodes report a well cluster, name the same owner of each slot,
// and consider no running node down.
func (c *RedisCluster) AwaitOK(ctx context.Context) error {
	clients := c.clients()
	defer clients.close()
	return await(ctx, "cluster to be well", func(ctx context.Context) string {
		_, amiss := c.agreed(ctx, clients)
		return amiss
	})
}

// agreed returns the view that all running nodes share, or the reason why they do not.
func (c *RedisCluster) agreed(ctx context.Context, clients adminClients) (clusterView, string) {
	var common clusterView
	for _, node := range c.nodes {
		if !node.serving() {
			continue
		}
		client := clients[node]
		info, err := client.ClusterInfo(ctx).Result()
		if err != nil {
			return nil, err.Error()
		}
		if !strings.Contains(info, "cluster_state:ok") {
			return nil, node.Addr() + " says that the cluster is down"
		}
		text, err := client.ClusterNodes(ctx).Result()
		if err != nil {
			return nil, err.Error()
		}
		view, err := parseClusterNodes(text)
		if err != nil {
			return nil, err.Error()
		}
		if amiss := c.missing(view); amiss != "" {
			return nil, "for " + node.Addr() + " " + amiss
		}
		if common == nil {
			common = view
		}
		if common.owners() != view.owners() {
			return nil, node.Addr() + " names other owners"
		}
	}
	if common == nil {
		return nil, errNotRunning.Error()
	}
	return common, ""
}

// missing names a running node that is unknown or down in the view.
func (c *RedisCluster) missing(view clusterView) string {
	for _, node := range c.nodes {
		if !node.serving() {
			continue
		}
		n := view.at(node.Addr())
		if n == nil {
			return node.Addr() + " is unknown"
		}
		for _, flag := range []string{"fail", "fail?", "handshake", "noaddr"} {
			if slices.Contains(n.flags, flag) {
				return node.Addr() + " is " + flag
			}
		}
	}
	return ""
}

// adminClients holds one client for each node, for as long as one method runs.
type adminClients map[*Redis]*redis.Client

func (c *RedisCluster) clients() adminClients {
	clients := make(adminClients, len(c.nodes))
	for _, node := range c.nodes {
		clients[node] = node.admin()
	}
	return clients
}

func (a adminClients) close() {
	for _, client := range a {
		client.Close()
	}
}

// Stop ends all nodes and removes their folders. The second and later calls do nothing.
func (c *RedisCluster) Stop() error {
	return together(c.nodes, func(_ int, node *Redis) error {
		if node == nil {
			return nil
		}
		return node.Stop()
	})
}
