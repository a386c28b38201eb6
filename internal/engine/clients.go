package engine

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// clients are the session's own, beside the caller's, so that a busy pool cannot starve it. They
// have the caller's options. Those for batches and for the heartbeat give up early, for the session
// itself retries what failed. The session uses a client as it is if it cannot find the client's
// options.
type clients struct {
	// own is for the heartbeat, the subscription, records of backends, and leaving.
	own      redis.UniversalClient
	batches  redis.UniversalClient
	operator redis.UniversalClient // for Snapshot and SetCapacity; connects when it is used
	borrowed bool                  // all of them are the caller's client

	listenTimeout time.Duration // for what the subscription does on its connection, 0: the client's
}

const (
	// maxIdle bounds the idle connections that stay. Connections that were opened for hedges stay
	// for a while: where Redis is slow, a new one costs a second round trip, for which a lease may
	// have no time. Few stay, and not for long: a network forgets idle connections, and each dead
	// one costs a call before the heartbeat opens a new one. Where replies took long, calls are a
	// fifth of a lease apart, and trust lasts for 0.57 of a lease after the first. So the third call
	// must be over a new connection.
	maxIdle = 2
	// maxOwn bounds the connections of the heartbeat's client: for its calls, for records of
	// backends, and for leaving. The subscription's connection does not count.
	maxOwn = core.MaxCalls + maxRecords*maxRecordTries + 2
	// maxIdleBatch is maxIdle for batches. They never overlap, so one connection is enough. A batch
	// that hangs on a dead connection is sent once more over a new one, not over another dead one.
	maxIdleBatch = 1
	// operatorIdle is for how long an operator's connection stays idle. Operators ask seldom, and a
	// call over a connection that a network has forgotten meanwhile would hang until it times out.
	operatorIdle = time.Second
	// maxBatchConns is one connection for batches, one for each time that a batch is sent once
	// more, and some for batches that hang: a dead connection counts until its time-out.
	maxBatchConns = 1 + core.MaxResends + 5
)

// clientsLike makes clients with the options of c.
func clientsLike(c redis.UniversalClient, ttl time.Duration) clients {
	// The heartbeat's calls, batches, records and leaving bring contexts that end them. The
	// subscription gives up earlier than all of them: nothing else notices that its connection
	// hangs.
	patience := max(ttl/2, 20*time.Millisecond)
	longest := max(2*ttl, startTimeout)
	hedgeIdle := max(ttl, min(12*ttl, time.Minute), time.Second)
	switch caller := optionsOf(c).(type) {
	case *redis.Options:
		own, batches, operator := *caller, *caller, *caller
		listen := atMost(own.ReadTimeout, patience)
		for _, o := range []*redis.Options{&own, &batches} {
			o.MaxRetries, o.DialerRetries, o.ConnMaxIdleTime = 1, 1, hedgeIdle
			o.DialTimeout = atMost(o.DialTimeout, patience)
			o.ReadTimeout, o.WriteTimeout = longest, longest
		}
		own.PoolSize, batches.PoolSize, batches.MaxRetries = maxOwn, maxBatchConns, -1
		for _, o := range []*redis.Options{&own, &batches, &operator} {
			o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = 0, maxIdle, 0
			// Identity: CLIENT SETINFO costs a round trip, and an ACL may forbid it.
			o.ContextTimeoutEnabled, o.DisableIdentity = true, true
			o.PushNotificationProcessor = nil
			o.ClientSideCacheConfig, o.ClientSideCache = nil, nil
			o.Limiter = nil // the application's own commands may trip it, and would end leases
			o.MaintNotificationsConfig = &maintnotifications.Config{
				Mode: maintnotifications.ModeDisabled,
			}
		}
		batches.MaxIdleConns, operator.ConnMaxIdleTime = maxIdleBatch, operatorIdle
		return clients{own: redis.NewClient(&own), batches: redis.NewClient(&batches),
			operator: redis.NewClient(&operator), listenTimeout: listen}
	case *redis.ClusterOptions:
		own, batches, operator := *caller, *caller, *caller
		for _, o := range []*redis.ClusterOptions{&own, &batches} {
			o.PoolSize, o.ConnMaxIdleTime = maxOwn, hedgeIdle
			o.DialTimeout = atMost(o.DialTimeout, patience)
			o.ReadTimeout, o.WriteTimeout = longest, longest
		}
		for _, o := range []*redis.ClusterOptions{&own, &batches, &operator} {
			o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = 0, maxIdle, 0
			o.ContextTimeoutEnabled, o.DisableIdentity = true, true
			o.PushNotificationProcessor = nil
			// The caller's reads may go to replicas; ours are writes, and subscriptions belong to
			// the owner of the slot.
			o.ReadOnly, o.RouteByLatency, o.RouteRandomly = false, false, false
			// With policies go-redis would ask any node for the list of Redis's commands, while all
			// calls wait for that, whatever their contexts say.
			o.DisableRoutingPolicies = true
			o.MaintNotificationsConfig = &maintnotifications.Config{
				Mode: maintnotifications.ModeDisabled,
			}
		}
		batches.MaxIdleConns, operator.ConnMaxIdleTime = maxIdleBatch, operatorIdle
		return clients{own: redis.NewClusterClient(&own), batches: redis.NewClusterClient(&batches),
			operator: redis.NewClusterClient(&operator)}
	default:
		return clients{own: c, batches: c, operator: c, borrowed: true}
	}
}

// atMost is d, or most if d is longer or has no bound.
func atMost(d, most time.Duration) time.Duration {
	if d <= 0 {
		return most
	}
	return min(d, most)
}

// listener is the client of subscriptions.
func (c clients) listener() redis.UniversalClient {
	if own, single := c.own.(*redis.Client); single && c.listenTimeout > 0 {
		return own.WithTimeout(c.listenTimeout)
	}
	return c.own
}

func (c clients) close() {
	if c.borrowed {
		return
	}
	for _, own := range []redis.UniversalClient{c.own, c.batches, c.operator} {
		_ = own.Close()
	}
}

// optionsOf returns the options of c, or of the client that a struct of the caller's embeds. They
// are *redis.Options, *redis.ClusterOptions or *redis.RingOptions, or nil if it finds none.
func optionsOf(c redis.UniversalClient) any {
	switch c := c.(type) {
	case interface{ Options() *redis.Options }: // *redis.Client, or a struct that embeds one
		return c.Options()
	case interface{ Options() *redis.ClusterOptions }:
		return c.Options()
	case interface{ Options() *redis.RingOptions }:
		return c.Options()
	}
	v := reflect.Indirect(reflect.ValueOf(c))
	if v.Kind() != reflect.Struct {
		return nil
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.Anonymous || !f.IsExported() || f.Type.Kind() != reflect.Interface {
			continue
		}
		if embedded, ok := v.Field(i).Interface().(redis.UniversalClient); ok {
			if o := optionsOf(embedded); o != nil {
				return o
			}
		}
	}
	return nil
}

// checkClient refuses clients with which a semaphore cannot work.
func checkClient(c redis.UniversalClient) error {
	if c == nil || reflect.ValueOf(c).Kind() == reflect.Pointer && reflect.ValueOf(c).IsNil() {
		return errors.New("semaphore: the Redis client is nil")
	}
	if _, ring := optionsOf(c).(*redis.RingOptions); ring {
		return errors.New("semaphore: a *redis.Ring moves to another shard when it cannot " +
			"reach one, and a semaphore is on one alone: use a client of that shard, or a Cluster")
	}
	return nil
}

// nodeOf returns a client of the node that has key, or c if that is no Cluster. go-redis sends a
// command without a key to any node. Another node's clock can differ, and it may be down.
func nodeOf(ctx context.Context, c redis.UniversalClient, key string) (
	redis.UniversalClient, error,
) {
	if cluster, ok := c.(*redis.ClusterClient); ok {
		return cluster.MasterForKey(ctx, key)
	}
	return c, nil
}

// reader is c for redisscript.Load, which asks for the time.
func reader(c redis.UniversalClient, key string) redisscript.Reader { return timeReader{c, key} }

type timeReader struct {
	redis.UniversalClient
	key string
}

func (r timeReader) Time(ctx context.Context) *redis.TimeCmd {
	node, err := nodeOf(ctx, r.UniversalClient, r.key)
	if err != nil {
		cmd := redis.NewTimeCmd(ctx)
		cmd.SetErr(err)
		return cmd
	}
	return node.Time(ctx)
}

// reloadSlots has go-redis find out again which node of a Cluster has our slot. By itself go-redis
// does so when a node says that the slot has moved, but not when the node is gone. Then for a
// minute it would go on asking the dead node.
func reloadSlots(ctx context.Context, c redis.UniversalClient) {
	if cluster, ok := c.(*redis.ClusterClient); ok {
		cluster.ReloadState(ctx)
	}
}
