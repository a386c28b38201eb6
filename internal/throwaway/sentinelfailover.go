package throwaway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Primary returns the server that all sentinels which answer, two at least, name as the primary.
func (s *Sentinel) Primary(ctx context.Context) (*Redis, error) {
	primary, amiss := s.agreed(ctx)
	if amiss != "" {
		return nil, errors.New("throwaway: " + amiss)
	}
	return primary, nil
}

// KillPrimary ends the primary with SIGKILL and returns it, for AwaitFailover and Restart.
func (s *Sentinel) KillPrimary(ctx context.Context) (*Redis, error) {
	primary, err := s.Primary(ctx)
	if err != nil {
		return nil, err
	}
	primary.Kill()
	return primary, nil
}

// Failover asks for an orderly failover and returns the old primary, for AwaitFailover.
func (s *Sentinel) Failover(ctx context.Context) (*Redis, error) {
	primary, err := s.Primary(ctx)
	if err != nil {
		return nil, err
	}
	for _, sentinel := range s.sentinels {
		if sentinel.serving() {
			_, err = sentinel.do(ctx, "SENTINEL", "FAILOVER", MasterName)
			return primary, err
		}
	}
	return nil, errNotRunning
}

// AwaitFailover waits until the sentinels agree on another primary than old, and that server
// considers itself a primary. Writes to old may be lost by then, because replication is
// asynchronous.
func (s *Sentinel) AwaitFailover(ctx context.Context, old *Redis) (*Redis, error) {
	var primary *Redis
	err := await(ctx, "failover from "+old.Addr(), func(ctx context.Context) string {
		var amiss string
		if primary, amiss = s.agreed(ctx); amiss != "" {
			return amiss
		}
		if primary == old {
			return "it is still the primary"
		}
		switch is, err := primary.IsPrimary(ctx); {
		case err != nil:
			return err.Error()
		case !is:
			return primary.Addr() + " is still a replica"
		}
		return ""
	})
	if err != nil {
		return nil, fmt.Errorf("%w; the first sentinel said:\n%s", err, s.sentinels[0].Log())
	}
	return primary, nil
}

// AwaitWhole waits until the next failover can come. Every running sentinel must know all running
// servers and consider none down, and every replica must be in sync. Servers that were killed and
// not restarted do not count.
func (s *Sentinel) AwaitWhole(ctx context.Context) error {
	return await(ctx, "sentinels to know each other", func(ctx context.Context) string {
		primary, amiss := s.agreed(ctx)
		if amiss != "" {
			return amiss
		}
		for _, sentinel := range s.sentinels {
			if !sentinel.serving() {
				continue
			}
			if amiss := s.sees(ctx, sentinel, primary); amiss != "" {
				return "sentinel " + sentinel.Addr() + ": " + amiss
			}
		}
		return ""
	})
}

// sees returns which running server a sentinel does not know, or considers down.
func (s *Sentinel) sees(ctx context.Context, sentinel, primary *Redis) string {
	client := sentinelClient(sentinel)
	defer client.Close()
	master, err := client.Master(ctx, MasterName).Result()
	if err != nil {
		return err.Error()
	}
	if master["flags"] != "master" {
		return "the primary is " + master["flags"]
	}
	if others, _ := strconv.Atoi(master["num-other-sentinels"]); others != len(s.sentinels)-1 {
		return fmt.Sprintf("it knows %d other sentinels", others)
	}
	replicas, err := client.Replicas(ctx, MasterName).Result()
	if err != nil {
		return err.Error()
	}
	for _, server := range s.servers {
		if server == primary || !server.serving() {
			continue
		}
		i := slices.IndexFunc(replicas, func(r map[string]string) bool {
			return r["ip"]+":"+r["port"] == server.Addr()
		})
		switch {
		case i < 0:
			return "it does not know the replica " + server.Addr()
		case replicas[i]["flags"] != "slave":
			return server.Addr() + " is " + replicas[i]["flags"]
		case replicas[i]["master-link-status"] != "ok":
			return "the link of " + server.Addr() + " is " + replicas[i]["master-link-status"]
		case replicas[i]["master-host"]+":"+replicas[i]["master-port"] != primary.Addr():
			return server.Addr() + " follows another"
		}
	}
	return ""
}

// agreed returns the primary that the sentinels name, or the reason why they do not agree.
func (s *Sentinel) agreed(ctx context.Context) (*Redis, string) {
	named := make(map[string]int)
	answers := 0
	for _, sentinel := range s.sentinels {
		if !sentinel.serving() {
			continue
		}
		client := sentinelClient(sentinel)
		addr, err := client.GetMasterAddrByName(ctx, MasterName).Result()
		client.Close()
		if err != nil || len(addr) != 2 {
			return nil, fmt.Sprintf("sentinel %s: %v %v", sentinel.Addr(), addr, err)
		}
		named[strings.Join(addr, ":")]++
		answers++
	}
	if len(named) != 1 || answers < sentinelQuorum {
		return nil, fmt.Sprintf("the sentinels name %v", named)
	}
	for _, server := range s.servers {
		if named[server.Addr()] > 0 {
			return server, ""
		}
	}
	return nil, fmt.Sprintf("the sentinels name an unknown server: %v", named)
}

func sentinelClient(sentinel *Redis) *redis.SentinelClient {
	return redis.NewSentinelClient(sentinel.adminOptions())
}
