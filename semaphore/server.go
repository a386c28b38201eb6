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

	listenTimeout time.Duration // for what the subscription does on its connection
}

func dedicated(c redis.UniversalClient, ttl time.Duration) lines {
	// A reply to a flight is worth nothing after that: the trust of what it grants is over. Its connection is
	// cut earlier where a heartbeat shows that it is dead (see lookAtFlight). The heartbeat's calls, the
	// records of backends and leaving bring contexts that end them. The subscription gives up earlier than
	// all of them: nothing else notices that its connection hangs.
	worth, patience := max(ttl-ttl/10, 20*time.Millisecond), max(ttl/2, 20*time.Millisecond)
	longest := max(2*ttl, startTimeout)
	// What was opened for hedges stays for a while: where Redis is slow, a new connection costs a second round
	// trip, and a lease may not have that. It does not stay for so long that it is dead when it is needed.
	hedgeIdle := max(ttl, min(4*ttl, time.Minute), time.Second)
	ws := &wires{open: make(map[*wire]struct{}), dials: make(map[int]context.CancelFunc)}
	switch c := c.(type) {
	case *redis.Client:
		heart, flights := *c.Options(), *c.Options()
		for _, o := range []*redis.Options{&heart, &flights} {
			o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns, o.MaxRetries = heartConns, 0, 0, 0, 1
			o.ConnMaxIdleTime = hedgeIdle
			o.ContextTimeoutEnabled, o.PushNotificationProcessor, o.ClientSideCacheConfig, o.ClientSideCache = true, nil, nil, nil
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout = hurried(o.DialTimeout, o.ReadTimeout, o.WriteTimeout, patience)
			o.DialerRetries, o.DisableIdentity = 1, true // CLIENT SETINFO costs a round trip
			o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		}
		flights.PoolSize, flights.MaxIdleConns, flights.MaxRetries, flights.Dialer = 1, 0, -1, ws.dialer(flights.Dialer)
		flights.ReadTimeout, flights.WriteTimeout = worth, worth
		listen := heart.ReadTimeout
		heart.ReadTimeout, heart.WriteTimeout, heart.MaxRetries = longest, longest, 1
		return lines{redis.NewClient(&heart), redis.NewClient(&flights), ws, listen}
	case *redis.ClusterClient:
		heart, flights := *c.Options(), *c.Options()
		for _, o := range []*redis.ClusterOptions{&heart, &flights} {
			o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = heartConns, 0, 0, 0
			o.ConnMaxIdleTime = hedgeIdle
			o.ContextTimeoutEnabled, o.PushNotificationProcessor = true, nil
			// The caller's reads may go to replicas; ours are writes, and subscriptions belong to the owner of the slot.
			o.ReadOnly, o.RouteByLatency, o.RouteRandomly = false, false, false
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout = hurried(o.DialTimeout, o.ReadTimeout, o.WriteTimeout, patience)
			o.ReadTimeout, o.WriteTimeout, o.DisableIdentity = longest, longest, true
			o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		}
		return lines{redis.NewClusterClient(&heart), redis.NewClusterClient(&flights), nil, 0}
	default:
		return lines{c, c, nil, 0}
	}
}

// heartConns is what the heartbeat's client may open: for its calls, for a record of a backend, and for
// leaving. The subscription's connection does not count.
const heartConns = callsMost + 3

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
