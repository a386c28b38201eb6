package engine

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// One node of a Cluster has all keys of a semaphore. If another one is down, that concerns nobody:
// neither sessions nor operators ask it anything, not even the time, which can differ there.
func TestOtherNodesOfAClusterAreNotAsked(t *testing.T) {
	server := miniredis.RunT(t)
	const down = "127.0.0.2:1"
	var dialled atomic.Int32
	client := func(ours, theirs int) *redis.ClusterClient { // the first and the last half of the slots
		halves := make([]redis.ClusterSlot, 2)
		halves[ours] = redis.ClusterSlot{Nodes: []redis.ClusterNode{{Addr: server.Addr()}}}
		halves[theirs] = redis.ClusterSlot{Nodes: []redis.ClusterNode{{Addr: down}}}
		halves[0].End, halves[1].Start, halves[1].End = 8191, 8192, 16383
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs:        []string{server.Addr(), down},
			ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) { return halves, nil },
			Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == down {
					dialled.Add(1)
					return nil, errors.New("this node is down")
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			},
			DialerRetries: 1,
		})
	}
	c := client(0, 1)
	node, err := c.MasterForKey(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	if node.Options().Addr == down {
		_ = c.Close()
		c = client(1, 0)
	}
	defer c.Close()
	operator, err := NewOperator(c, base)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		s, err := Open(t.Context(), c, false, filled(Config{Capacity: 2}))
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, snapshot := s.Snapshot(t.Context())
		s.readHolders()
		_, again := operator.Snapshot(t.Context())
		_, events := operator.Events(t.Context())
		capacity := operator.SetCapacity(t.Context(), 3, "me")
		if err := errors.Join(snapshot, again, events, capacity, giveUp(p), s.Close()); err != nil {
			t.Error(err)
		}
	}
	if n := dialled.Load(); n > 0 {
		t.Errorf("another node was dialled %d times", n)
	}
}
