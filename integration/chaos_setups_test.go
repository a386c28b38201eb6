//go:build unix

package integration

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// This file holds the faults of a chaos run that users' deployments have shown.

// A NAT or a firewall loses its table: connections to Redis are dead, and neither side hears of it.
// The sessions detect it by themselves, in time for their leases.
func (r *chaos) redisForgets(s step) {
	r.fleet.redisProxies(-1, (*throwaway.Proxy).Forget)
	r.hold(s)
	r.from(time.Now())
}

// Redis answers late, but within the leases: replies pass only at moments that are 2 s apart, and
// each reply waits for the next one. No lease is lost, and no operation fails.
func (r *chaos) redisSlow(s step) {
	for end := time.Now().Add(s.length); time.Now().Before(end); {
		r.fleet.redisProxies(-1, (*throwaway.Proxy).StallReplies)
		time.Sleep(2 * time.Second)
		r.fleet.redisProxies(-1, (*throwaway.Proxy).Resume)
		// On a busy machine a proxy needs a moment to forward the bytes that it held back.
		time.Sleep(300 * time.Millisecond)
	}
	r.from(time.Now())
}

// Redis reaches maxmemory for longer than a lease. Leases are still renewed. Redis grants nothing
// new, but no caller waits long enough for that to be an error.
func (r *chaos) redisFull(s step) {
	ctx := r.t.Context()
	r.must(r.redis().ConfigSet(ctx, "maxmemory", "1").Err())
	r.hold(s)
	r.must(r.redis().ConfigSet(ctx, "maxmemory", "0").Err())
	r.from(time.Now())
}

// A planned failover: the replica takes over with all that the primary stored, and the address
// leads to it from then on. But the old primary lives on as its replica, and keeps its connections.
func (r *chaos) demoted(s step) {
	r.fleet.redisProxies(-1, (*throwaway.Proxy).Stall)
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	r.must(r.replica.AwaitSync(ctx, r.primary))
	r.must(r.replica.Follow(ctx, ""))
	r.primary, r.replica = r.replica, r.primary
	r.queues.at(r.primary.Addr())
	r.must(r.replica.Follow(ctx, r.primary.Addr()))
	r.fleet.redisProxies(-1, func(p *throwaway.Proxy) {
		p.Retarget(r.primary.Addr())
		p.Resume()
	})
	r.from(time.Now())
	r.hold(s)
	r.must(r.replica.AwaitSync(ctx, r.primary))
}

// The same to Postgres, whose backends live on. Queries fail by their callers' timeouts. Permits
// stay counted until the pool has ended the backends over another connection. For that each pool
// may exceed its permits by one, once.
//
// A pool ends a backend over a connection to the same address only, unless Config.Fence has
// recorded the backend. So without Fence, connections by the second host end first.
func (r *chaos) postgresForgets(s step) {
	began := time.Now() // operations fail from the reset on
	if !r.job.Fence {
		r.hadReset(s, began)
		for i, p := range r.fleet.places {
			if s.whose() < 0 || s.whose() == i {
				p.postgres.Reset()
			}
		}
	}
	r.fleet.postgresProxies(s.whose(), (*throwaway.Proxy).Forget)
	lent := 1
	if s.whose() < 0 {
		lent = chaosProcesses
	}
	end := r.excused("permits lent to end the backends of lost connections", lent, nil)
	r.hold(s)
	over := began.Add(queryTimeout + longestRun + 2*grace)
	end(over.Add(grace))
	r.fleet.allow(s.whose(), began, over)
	time.Sleep(time.Until(began.Add(queryTimeout)))
	r.from(time.Now())
}

// The first host of a process's DSN accepts connections and sends nothing. The fault resets the
// process's connections, so it has to open new ones by its second host.
func (r *chaos) hostHangs(s step) {
	hole, err := newBlackHole()
	r.must(err)
	defer hole.close()
	front := r.fleet.places[max(s.process, 0)].front
	at := time.Now()
	one := s
	one.way, one.process = 1, max(s.process, 0)
	r.hadReset(one, at)
	front.Retarget(hole.addr())
	front.Reset()
	r.fleet.allow(one.process, at, at.Add(grace))
	r.hold(s)
	r.await("connection by the second host", func() bool {
		l, _ := r.ledger.last()
		return !l.down && len(l.backends) >= int(minUsed*float64(r.queues.capacityOf()))
	})
	front.Retarget(r.postgres.Addr())
	hole.close()
	r.from(time.Now())
}

// A blackHole accepts connections, and sends nothing.
type blackHole struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func newBlackHole() (*blackHole, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h := &blackHole{Listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			h.conns = append(h.conns, c)
			h.mu.Unlock()
		}
	}()
	return h, nil
}

func (h *blackHole) addr() string { return h.Addr().String() }

func (h *blackHole) close() {
	_ = h.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		_ = c.Close()
	}
	h.conns = nil
}
