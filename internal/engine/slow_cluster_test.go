package engine

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// A network forgets all connections to a node of a Cluster, after a time in which Redis was slow
// and many were open. The session hedges over new ones.
func TestForgottenConnectionsToAClusterLoseNoLease(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
		for range subset.Length(2, 10) {
			inWorld(t, func(t *testing.T, w *world) {
				l := w.SlowLink(bubble.Always(time.Millisecond))
				c := redis.NewClusterClient(&redis.ClusterOptions{
					Addrs: []string{bubble.Addr}, Dialer: l.Dial,
					ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
						return []redis.ClusterSlot{{End: 16383, Nodes: []redis.ClusterNode{
							{Addr: bubble.Addr}}}}, nil
					},
				})
				s := w.open(c, Config{Capacity: 2, TTL: ttl, Patience: forever})
				w.T.Cleanup(func() {
					l.SetDelay(bubble.Always(0))
					_ = s.Close()
					_ = c.Close()
				})
				p, err := s.get(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				l.SetDelay(bubble.Always(ttl * 9 / 50)) // each way
				time.Sleep(2 * ttl)
				l.SetDelay(bubble.Always(10 * time.Millisecond))
				time.Sleep(2 * ttl / 5) // the last late replies come
				var calls sync.WaitGroup
				for range 8 { // as hedges do, and records of backends
					calls.Go(func() { _ = s.clients.own.Ping(t.Context()).Err() })
				}
				calls.Wait()
				l.SetDelay(bubble.Always(time.Millisecond))
				time.Sleep(rand.N(3 * ttl))
				l.Forget()
				time.Sleep(3 * ttl)
				notLost(t, p)
			})
		}
	}
}
