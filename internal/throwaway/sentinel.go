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

const (
	sentinelCount  = 3
	sentinelQuorum = 2
	// MasterName is the sentinels' name for the primary.
	MasterName = "passbuddy"
)

// SentinelOptions are the settings of the servers. The zero value is the documented default.
type SentinelOptions struct {
	// Replicas is the number of the primary's replicas. Default 2.
	Replicas int
	// DownAfter is how long the primary may be silent before a sentinel considers it down. The
	// second and third sentinels wait a tenth longer each. Default 1 s.
	DownAfter time.Duration
	// FailoverTimeout is the sentinels' failover-timeout. A failed attempt is repeated after twice
	// that. Default 2 s.
	FailoverTimeout time.Duration
	// Redis applies to the primary and the replicas alike. The sentinels get its TLS, and no
	// password.
	Redis RedisOptions
}

// Sentinel is a primary with its replicas, watched by three sentinels of which two have to agree.
// Its methods may be called from several goroutines.
type Sentinel struct {
	opts      SentinelOptions
	servers   []*Redis // the first was the primary at the start
	sentinels []*Redis
}

// StartSentinel starts the primary, the replicas and the sentinels. It returns when all know each
// other and the replicas are in sync. ctx bounds the start only; the servers run until Stop. The
// error wraps [ErrNotFound] when Redis is not installed.
func StartSentinel(ctx context.Context, opts SentinelOptions) (_ *Sentinel, err error) {
	opts.Replicas = orDefault(opts.Replicas, 2)
	opts.DownAfter = orDefault(opts.DownAfter, time.Second)
	opts.FailoverTimeout = orDefault(opts.FailoverTimeout, 2*time.Second)
	s := &Sentinel{opts: opts, servers: make([]*Redis, 1+opts.Replicas), sentinels: make([]*Redis,
		sentinelCount)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	primary, err := StartRedis(ctx, opts.Redis)
	if err != nil {
		return nil, err
	}
	s.servers[0] = primary
	if err := together(s.servers[1:], func(i int, _ *Redis) (err error) {
		s.servers[1+i], err = primary.launchReplica(ctx, opts.Redis)
		return err
	}); err != nil {
		return nil, err
	}
	// A sentinel searches for replicas at once and then every 10 s, so all replicas must be there
	// first.
	if err := together(s.servers[1:], func(_ int, r *Redis) error {
		return r.AwaitSync(ctx, primary)
	}); err != nil {
		return nil, err
	}
	if err := together(s.sentinels, func(i int, _ *Redis) (err error) {
		s.sentinels[i], err = launchRedis(ctx, s.sentinelOptions(i, primary), sentinelMode)
		return err
	}); err != nil {
		return nil, err
	}
	if err := s.AwaitWhole(ctx); err != nil {
		return nil, fmt.Errorf("%w; the first sentinel said:\n%s", err, s.sentinels[0].Log())
	}
	return s, nil
}

func (s *Sentinel) sentinelOptions(i int, primary *Redis) RedisOptions {
	host, port, _ := net.SplitHostPort(primary.Addr())
	// Their patience differs. Otherwise they would stand for election at once, and a split vote
	// costs two failover timeouts.
	downAfter := s.opts.DownAfter + time.Duration(i)*s.opts.DownAfter/10
	lines := []string{
		fmt.Sprintf("sentinel monitor %s %s %s %d", MasterName, host, port, sentinelQuorum),
		fmt.Sprintf("sentinel down-after-milliseconds %s %d", MasterName, downAfter.Milliseconds()),
		fmt.Sprintf("sentinel failover-timeout %s %d", MasterName,
			s.opts.FailoverTimeout.Milliseconds()),
		fmt.Sprintf("sentinel parallel-syncs %s %d", MasterName, s.opts.Replicas),
	}
	if password := s.opts.Redis.Password; password != "" {
		lines = append(lines, "sentinel auth-pass "+MasterName+" "+quoted(password))
	}
	return RedisOptions{TLS: s.opts.Redis.TLS, Config: lines}
}

// hurry shortens a sentinel's periods of one to ten seconds, and the 30 s that it waits after a
// pause of its own. A down-after of a second needs that. Otherwise the sentinel would take longer
// to connect to the new primary after a failover, and would depose it as well. Redis has these
// settings from version 7 on; before, DownAfter must be longer.
//
// A sentinel does not promote a replica whose last INFO is older than five ping-periods. While a
// primary is down, it asks its replicas for INFO once a second, whatever the info-period. So the
// ping-period must be well above 200 ms.
func hurry(ctx context.Context, sentinel *Redis) error {
	_, err := sentinel.do(ctx, "SENTINEL", "DEBUG", "ping-period", 400, "ask-period", 200,
		"info-period", 500, "publish-period", 300, "tilt-period", 1000)
	if err != nil && strings.Contains(strings.ToLower(err.Error()), "unknown") {
		return nil
	}
	return err
}

// Servers returns the primary of the start, and its replicas.
func (s *Sentinel) Servers() []*Redis { return slices.Clone(s.servers) }

// Sentinels are the sentinel processes.
func (s *Sentinel) Sentinels() []*Redis { return slices.Clone(s.sentinels) }

// Addrs are the addresses of the sentinels.
func (s *Sentinel) Addrs() []string { return addrs(s.sentinels) }

// FailoverOptions returns the options for redis.NewFailoverClient.
func (s *Sentinel) FailoverOptions() *redis.FailoverOptions {
	return &redis.FailoverOptions{
		MasterName: MasterName, SentinelAddrs: s.Addrs(),
		Password: s.opts.Redis.Password, TLSConfig: s.servers[0].TLSConfig(),
	}
}

// UniversalOptions returns the options for redis.NewUniversalClient.
func (s *Sentinel) UniversalOptions() *redis.UniversalOptions {
	return &redis.UniversalOptions{
		MasterName: MasterName, Addrs: s.Addrs(),
		Password: s.opts.Redis.Password, TLSConfig: s.servers[0].TLSConfig(),
	}
}

// Stop ends all servers and removes their folders. The second and later calls do nothing.
func (s *Sentinel) Stop() error {
	return together(slices.Concat(s.sentinels, s.servers), func(_ int, r *Redis) error {
		if r == nil {
			return nil
		}
		return r.Stop()
	})
}
