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

// dedicated returns a client like c with two connections of its own, for calls that must not wait behind the
// caller's. It gives up early, because the heartbeat tries again by itself. Kinds of clients it does not know are used as they are.
func dedicated(c redis.UniversalClient, ttl time.Duration) redis.UniversalClient {
	const size = 2
	patience := max(ttl/4, 20*time.Millisecond)
	shorter := func(d time.Duration, byDefault time.Duration) time.Duration {
		if d <= 0 {
			d = byDefault
		}
		return min(d, patience)
	}
	switch c := c.(type) {
	case *redis.Client:
		o := *c.Options()
		o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = size, 0, 0, 0
		o.MaxRetries, o.ContextTimeoutEnabled = 1, true
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout = shorter(o.DialTimeout, patience), shorter(o.ReadTimeout, patience), shorter(o.WriteTimeout, patience)
		o.PushNotificationProcessor = nil
		o.ClientSideCacheConfig, o.ClientSideCache = nil, nil
		o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		return redis.NewClient(&o)
	case *redis.ClusterClient:
		o := *c.Options()
		o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = size, 0, 0, 0
		o.ContextTimeoutEnabled = true
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout = shorter(o.DialTimeout, patience), shorter(o.ReadTimeout, patience), shorter(o.WriteTimeout, patience)
		o.PushNotificationProcessor = nil
		o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		return redis.NewClusterClient(&o)
	default:
		return c
	}
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
	var s serverInfo
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
	return s, nil
}

func (s serverInfo) check() error {
	major, _, _ := strings.Cut(s.version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < oldestMajor {
		return fmt.Errorf("the server is Redis %s, too old: %d.0 or later is needed", s.version, oldestMajor)
	}
	return nil
}

func (s serverInfo) mayEvict() bool {
	return s.policy != "" && s.policy != "noeviction" && s.maxMemory != "" && s.maxMemory != "0"
}
