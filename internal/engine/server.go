package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// serverInfo is what INFO tells. Fields it does not tell, or may not by its ACL, are empty.
type serverInfo struct {
	version, policy, maxMemory string
	cluster                    bool // a node of a Cluster, and the client that asked stays there
}

// oldestMajor is the first release tested: scripts that read the clock and then write need 5, and
// go-redis supports 6.
const oldestMajor = 6

// inspectServer asks the Redis that has key what it is. It is no error if Redis will not tell. It is
// one if Redis does not answer, or wants other credentials.
func inspectServer(
	ctx context.Context, c redis.UniversalClient, key string,
) (s serverInfo, err error) {
	if _, single := c.(*redis.Client); !single {
		defer func() { s.cluster = false }()
	}
	if c, err = nodeOf(ctx, c, key); err != nil {
		return serverInfo{}, err
	}
	text, err := c.Info(ctx).Result()
	if err != nil {
		var refused redis.Error
		if errors.As(err, &refused) && !beginsWith(err, "NOAUTH", "WRONGPASS") {
			return askHello(ctx, c), nil
		}
		return serverInfo{}, err
	}
	return parseServerInfo(text), nil
}

// askHello asks a server that refuses INFO what it is, with HELLO, which no ACL can forbid.
func askHello(ctx context.Context, c redis.UniversalClient) (s serverInfo) {
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
	"follow a slot from node to node: use a URL with ?addr=host:port in it, or semaphore.New with a " +
	"*redis.ClusterClient")

func (s serverInfo) check() error {
	major, _, _ := strings.Cut(s.version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < oldestMajor {
		return fmt.Errorf("the server is Redis %s, too old: %d.0 or later is needed",
			s.version, oldestMajor)
	}
	if s.cluster {
		return errCluster
	}
	return nil
}

// explainCluster turns a MOVED and its like, to a client of one node, into errCluster. It is for
// servers that refuse both INFO and HELLO.
func explainCluster(c redis.UniversalClient, err error) error {
	_, single := c.(*redis.Client)
	if single && beginsWith(err, "MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN") {
		return fmt.Errorf("%w (%w)", errCluster, err)
	}
	return err
}

// isTemporary reports whether Redis has answered that it cannot serve now, but will.
func isTemporary(err error) bool {
	return beginsWith(err, "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "BUSY",
		"NOREPLICAS", "MOVED", "ASK", "max number of clients reached")
}

// beginsWith reports whether err is an answer of Redis that begins with one of those words.
func beginsWith(err error, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool {
		return redis.HasErrorPrefix(err, prefix)
	})
}

func (s serverInfo) mayEvict() bool {
	// No key of ours has a TTL, so the volatile policies spare them.
	return strings.HasPrefix(s.policy, "allkeys-") && s.maxMemory != "" && s.maxMemory != "0"
}
