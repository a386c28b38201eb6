package semaphore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// A session has clients of its own beside the caller's, so that a busy pool cannot starve it. One
// is for the heartbeat and the subscription, one, of a single connection, for the flights, and one
// for what operators ask. They have the caller's options. The first two give up early, for the
// session itself retries what failed. The session uses a client as it is if it cannot find the
// client's options.
type lines struct {
	own      redis.UniversalClient // for the heartbeat and the subscription
	flights  redis.UniversalClient
	operator redis.UniversalClient // for Snapshot and SetCapacity; connects when it is used
	wires    *wires                // of flights; nil if they cannot be cut
	borrowed bool                  // all of them are the caller's client

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
	// trip, and a lease may not have that. Few stay, and not for long: a network forgets what is idle, and each
	// dead connection costs a call before the heartbeat opens a new one.
	hedgeIdle := max(ttl, min(12*ttl, time.Minute), time.Second)
	ws := &wires{open: make(map[*wire]struct{}), dials: make(map[int]context.CancelFunc)}
	switch caller := optionsOf(c).(type) {
	case *redis.Options:
		heart, flights, operator := *caller, *caller, *caller
		for _, o := range []*redis.Options{&heart, &flights} {
			o.PoolSize, o.MaxRetries, o.DialerRetries = heartConns, 1, 1
			o.ConnMaxIdleTime = hedgeIdle
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout =
				hurried(o.DialTimeout, o.ReadTimeout, o.WriteTimeout, patience)
		}
		for _, o := range []*redis.Options{&heart, &flights, &operator} {
			o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = 0, hedgesKept, 0
			// Identity: CLIENT SETINFO costs a round trip, and an ACL may forbid it.
			o.ContextTimeoutEnabled, o.PushNotificationProcessor, o.DisableIdentity = true, nil, true
			o.ClientSideCacheConfig, o.ClientSideCache = nil, nil
			o.Limiter = nil // the application's own commands may trip it, and would end leases
			o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		}
		flights.PoolSize, flights.MaxRetries, flights.Dialer = 1, -1, ws.dialer(flights.Dialer)
		flights.ReadTimeout, flights.WriteTimeout = worth, worth
		listen := heart.ReadTimeout
		heart.ReadTimeout, heart.WriteTimeout = longest, longest
		return lines{own: redis.NewClient(&heart), flights: redis.NewClient(&flights),
			operator: redis.NewClient(&operator), wires: ws, listenTimeout: listen}
	case *redis.ClusterOptions:
		heart, flights, operator := *caller, *caller, *caller
		for _, o := range []*redis.ClusterOptions{&heart, &flights} {
			o.PoolSize, o.ConnMaxIdleTime = heartConns, hedgeIdle
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout =
				hurried(o.DialTimeout, o.ReadTimeout, o.WriteTimeout, patience)
			o.ReadTimeout, o.WriteTimeout = longest, longest
		}
		for _, o := range []*redis.ClusterOptions{&heart, &flights, &operator} {
			o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = 0, hedgesKept, 0
			o.ContextTimeoutEnabled, o.PushNotificationProcessor, o.DisableIdentity = true, nil, true
			// The caller's reads may go to replicas; ours are writes, and subscriptions belong to the owner of the slot.
			o.ReadOnly, o.RouteByLatency, o.RouteRandomly = false, false, false
			o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		}
		return lines{own: redis.NewClusterClient(&heart), flights: redis.NewClusterClient(&flights),
			operator: redis.NewClusterClient(&operator)}
	default:
		return lines{own: c, flights: c, operator: c, borrowed: true}
	}
}

// hedgesKept bounds the idle connections.
const hedgesKept = 3

// heartConns is what the heartbeat's client may open: for its calls, for records of backends, and for
// leaving. The subscription's connection does not count.
const heartConns = callsMost + recordsAtOnce*marksAtOnce + 2

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

// checkClient refuses clients that a semaphore cannot live on.
func checkClient(c redis.UniversalClient) error {
	if c == nil || reflect.ValueOf(c).Kind() == reflect.Pointer && reflect.ValueOf(c).IsNil() {
		return errors.New("semaphore: the Redis client is nil")
	}
	if _, ring := optionsOf(c).(*redis.RingOptions); ring {
		return errors.New("semaphore: a *redis.Ring moves to another shard when it cannot reach one, " +
			"and a semaphore is on one alone: use a client of that shard, or a Cluster")
	}
	return nil
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
	cluster                    bool // a node of a Cluster, and the client that asked stays there
}

// oldest is the first release tested: scripts that read the clock and then write need 5, and go-redis supports 6.
const oldestMajor = 6

// inspectServer asks Redis what it is. That it will not tell is no error; that it does not answer, or wants other credentials, is.
func inspectServer(ctx context.Context, c redis.UniversalClient) (s serverInfo, err error) {
	if _, single := c.(*redis.Client); !single {
		defer func() { s.cluster = false }()
	}
	text, err := c.Info(ctx).Result()
	if err != nil {
		var refused redis.Error
		if errors.As(err, &refused) && !redis.HasErrorPrefix(err, "NOAUTH") && !redis.HasErrorPrefix(err, "WRONGPASS") {
			return greet(ctx, c), nil
		}
		return serverInfo{}, err
	}
	return parseServerInfo(text), nil
}

// greet asks with HELLO, which no ACL can forbid, what a server is that refuses INFO.
func greet(ctx context.Context, c redis.UniversalClient) (s serverInfo) {
	v, err := c.Do(ctx, "hello").Result()
	if err != nil {
		return s
	}
	told := make(map[any]any)
	switch v := v.(type) {
	case map[any]any:
		told = v
	case []any:
		for i := 0; i+1 < len(v); i += 2 {
			if key, ok := v[i].(string); ok {
				told[key] = v[i+1]
			}
		}
	}
	s.version, _ = told["version"].(string)
	s.cluster = told["mode"] == "cluster"
	return s
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
		case "redis_mode":
			s.cluster = s.cluster || value == "cluster"
		case "cluster_enabled":
			s.cluster = s.cluster || value == "1"
		}
	}
	return s
}

// errCluster refuses a client of one node, even if that node owns the semaphore's slot: the client
// would work only until the slot moves.
var errCluster = errors.New("the server is a node of a Redis Cluster, and a *redis.Client cannot " +
	"follow a slot from node to node: use semaphore.New with a *redis.ClusterClient")

func (s serverInfo) check() error {
	major, _, _ := strings.Cut(s.version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < oldestMajor {
		return fmt.Errorf("the server is Redis %s, too old: %d.0 or later is needed", s.version, oldestMajor)
	}
	if s.cluster {
		return errCluster
	}
	return nil
}

// sayCluster turns a MOVED and its like, to a client of one node, into errCluster. It is for
// servers that refuse both INFO and HELLO.
func sayCluster(c redis.UniversalClient, err error) error {
	if _, single := c.(*redis.Client); !single {
		return err
	}
	for _, prefix := range []string{"MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN"} {
		if redis.HasErrorPrefix(err, prefix) {
			return fmt.Errorf("%w (%w)", errCluster, err)
		}
	}
	return err
}

// isPassing reports whether Redis has answered that it cannot serve now, but will.
func isPassing(err error) bool {
	for _, prefix := range []string{"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY",
		"BUSY", "NOREPLICAS", "MOVED", "ASK", "max number of clients reached"} {
		if redis.HasErrorPrefix(err, prefix) {
			return true
		}
	}
	return false
}

// joinPause is the time between the tries of firstBeat.
const joinPause = 100 * time.Millisecond

// firstBeat is the heartbeat by which a session joins. It retries for as long as ctx allows if
// Redis answers that it cannot serve yet, if too few replicas acknowledge, or if a call times out.
// A session that joins twice has joined once.
func (s *Semaphore) firstBeat(ctx context.Context) error {
	var cause error // the last answer of Redis
	for {
		err := sayCluster(s.own, s.beatWithin(ctx, startTimeout))
		var late net.Error
		switch {
		case err == nil || errors.Is(err, errCluster):
			return err
		case errors.As(err, new(unacknowledged)) || isPassing(err):
			cause = err
		case errors.Is(err, context.DeadlineExceeded), errors.As(err, &late) && late.Timeout():
		default:
			return err
		}
		select {
		case <-time.After(joinPause):
		case <-ctx.Done():
			return cmp.Or(cause, err)
		}
	}
}

func (s serverInfo) mayEvict() bool {
	// No key of ours has a TTL, so the volatile policies spare them.
	return strings.HasPrefix(s.policy, "allkeys-") && s.maxMemory != "" && s.maxMemory != "0"
}
