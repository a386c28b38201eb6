package semaphore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// A session has two clients of its own beside the caller's, so that a busy pool cannot starve it: one for the heartbeat and the
// subscription, and one, of a single connection, for its flights. They have the caller's options, but give up early: what failed is tried
// again by the session itself. Kinds of clients that are not known here are used as they are.
type lines struct {
	own     redis.UniversalClient // for the heartbeat and the subscription
	flights redis.UniversalClient
	wires   *wires // of flights; nil if they cannot be cut
}

func dedicated(c redis.UniversalClient, ttl time.Duration) lines {
	patience := max(ttl/4, 20*time.Millisecond)
	ws := &wires{open: make(map[*wire]struct{}), dials: make(map[int]context.CancelFunc)}
	switch c := c.(type) {
	case *redis.Client:
		heart, flights := *c.Options(), *c.Options()
		for _, o := range []*redis.Options{&heart, &flights} {
			o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns, o.MaxRetries = 2, 0, 0, 0, 1
			o.ContextTimeoutEnabled, o.PushNotificationProcessor, o.ClientSideCacheConfig, o.ClientSideCache = true, nil, nil, nil
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout = hurried(o.DialTimeout, o.ReadTimeout, o.WriteTimeout, patience)
			o.DialerRetries = 1
			o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		}
		flights.PoolSize, flights.MaxRetries, flights.Dialer = 1, -1, ws.dialer(flights.Dialer)
		return lines{redis.NewClient(&heart), redis.NewClient(&flights), ws}
	case *redis.ClusterClient:
		heart, flights := *c.Options(), *c.Options()
		for _, o := range []*redis.ClusterOptions{&heart, &flights} {
			o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = 2, 0, 0, 0
			o.ContextTimeoutEnabled, o.PushNotificationProcessor = true, nil
			// The caller's reads may go to replicas; ours are writes, and subscriptions belong to the owner of the slot.
			o.ReadOnly, o.RouteByLatency, o.RouteRandomly = false, false, false
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout = hurried(o.DialTimeout, o.ReadTimeout, o.WriteTimeout, patience)
			o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		}
		return lines{redis.NewClusterClient(&heart), redis.NewClusterClient(&flights), nil}
	default:
		return lines{c, c, nil}
	}
}

// lookAround has go-redis find out again which node of a Cluster has our slot. By itself it does so when a node says that the slot has
// moved, but not when the node is gone: then for a minute it would go on asking the dead.
func lookAround(ctx context.Context, c redis.UniversalClient) {
	if cluster, ok := c.(*redis.ClusterClient); ok {
		cluster.ReloadState(ctx)
	}
}

// hurried shortens time-outs to patience.
func hurried(dial, read, write, patience time.Duration) (_, _, _ time.Duration) {
	shorter := func(d time.Duration) time.Duration {
		if d <= 0 {
			return patience
		}
		return min(d, patience)
	}
	return shorter(dial), shorter(read), shorter(write)
}

// serverInfo is what INFO tells. Fields it does not tell, or may not by its ACL, are empty.
type serverInfo struct {
	version, policy, maxMemory string
}

// oldest is the first release tested: scripts that read the clock and then write need 5, and go-redis supports 6.
const oldestMajor = 6

// inspectServer asks Redis what it is. That it will not tell is no error; that it does not answer, or wants other credentials, is.
func inspectServer(ctx context.Context, c redis.UniversalClient) (serverInfo, error) {
	text, err := c.Info(ctx).Result()
	if err != nil {
		var refused redis.Error
		if errors.As(err, &refused) && !redis.HasErrorPrefix(err, "NOAUTH") && !redis.HasErrorPrefix(err, "WRONGPASS") {
			return serverInfo{}, nil
		}
		return serverInfo{}, err
	}
	return parseServerInfo(text), nil
}

func parseServerInfo(text string) (s serverInfo) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch key {
		case "redis_version":
			s.version = value
		case "maxmemory_policy":
			s.policy = value
		case "maxmemory":
			s.maxMemory = value
		}
	}
	return s
}

func (s serverInfo) check() error {
	major, _, _ := strings.Cut(s.version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < oldestMajor {
		return fmt.Errorf("the server is Redis %s, too old: %d.0 or later is needed", s.version, oldestMajor)
	}
	return nil
}

func (s serverInfo) mayEvict() bool {
	// No key of ours has a TTL, so the volatile policies spare them.
	return strings.HasPrefix(s.policy, "allkeys-") && s.maxMemory != "" && s.maxMemory != "0"
}
