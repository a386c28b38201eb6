package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// The session's client does not inherit the Cluster options that send reads to replicas; they serve
// the caller's own calls.
func TestRoutingIsOurOwn(t *testing.T) {
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"},
		ReadOnly: true, RouteByLatency: true, RouteRandomly: true})
	defer c.Close()
	l := clientsLike(c, defaultTTL)
	defer l.close()
	for name, own := range map[string]redis.UniversalClient{"own": l.own, "batches": l.batches} {
		if o := own.(*redis.ClusterClient).Options(); o.ReadOnly || o.RouteByLatency ||
			o.RouteRandomly {
			t.Errorf("%s: ReadOnly %v, RouteByLatency %v, RouteRandomly %v", name, o.ReadOnly,
				o.RouteByLatency, o.RouteRandomly)
		}
	}
}

// The session's clients have the caller's options, except those that serve the caller's own calls.
func TestOptionsOfOwnClients(t *testing.T) {
	c := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:1", ClientName: "name", DB: 3, Limiter: noLimit{}, MinIdleConns: 5,
	})
	defer c.Close()
	cluster := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: []string{"127.0.0.1:1"}, ClientName: "name", RouteRandomly: true,
	})
	defer cluster.Close()
	for _, caller := range []redis.UniversalClient{c, struct {
		*redis.Client
	}{c}, cluster, struct{ *redis.ClusterClient }{cluster}} {
		l := clientsLike(caller, defaultTTL)
		defer l.close()
		for name, own := range map[string]redis.UniversalClient{
			"own": l.own, "batches": l.batches, "operator": l.operator,
		} {
			switch o := optionsOf(own).(type) {
			case *redis.Options:
				if o.ClientName != "name" || o.DB != 3 || o.Limiter != nil || o.MinIdleConns != 0 ||
					!o.DisableIdentity {
					t.Errorf("%T, %s: %+v", caller, name, o)
				}
			case *redis.ClusterOptions:
				if o.ClientName != "name" || o.RouteRandomly || !o.DisableIdentity {
					t.Errorf("%T, %s: %+v", caller, name, o)
				}
			default:
				t.Errorf("%T, %s: a client of kind %T", caller, name, own)
			}
		}
	}
}

type noLimit struct{}

func (noLimit) Allow() error       { return errors.New("the circuit is open") }
func (noLimit) ReportResult(error) {}

// Only a policy that evicts keys without a TTL can evict ours.
func TestOnlyPoliciesForAllKeysAreWarnedOf(t *testing.T) {
	for policy, warns := range map[string]bool{"noeviction": false, "volatile-lru": false,
		"volatile-ttl": false, "allkeys-lru": true, "allkeys-random": true, "": false} {
		info := parseServerInfo("maxmemory:1000\r\nmaxmemory_policy:" + policy + "\r\n")
		if got := info.mayEvict(); got != warns {
			t.Errorf("%q: %v, want %v", policy, got, warns)
		}
	}
}

// check reads any reply to INFO, and refuses a server only for its version or its mode.
func FuzzServerInfo(f *testing.F) {
	for _, seed := range []string{
		"redis_version:7.0.15\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n", "", ":",
		"redis_version", "redis_version:5\n", "redis_version:-1.x", "\x00\n\n:::"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := parseServerInfo(text)
		if err := s.check(); err != nil && !strings.Contains(err.Error(), s.version) {
			t.Errorf("%v, of version %q", err, s.version)
		}
		if s.mayEvict() && s.policy == "" {
			t.Error("without a policy, may evict is reported")
		}
	})
}
