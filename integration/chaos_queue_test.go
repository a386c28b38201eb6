//go:build unix

package integration

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
	"github.com/passbuddy/passbuddy/semaphore"
)

// This file samples the semaphores in Redis, past all proxies, as chaos_ledger_test.go samples
// Postgres. In a calm it asserts:
//
//   - never more permits than the capacity, of either semaphore;
//   - the queue of plain permits is first come, first served. If B was behind A in one sample, and
//     holds its permit in the next, then A no longer waits. All these requests have one rank.
//     (Redis serves pools by their share, and each process judges the callers of its own pool.)

// A queueSample is the state of both semaphores at one instant.
type queueSample struct {
	at                    time.Time
	permits, plainPermits []string
	waiters, plainQueue   []string // in the order in which Redis serves them
	sessions              int
}

// queues is the record of the samples.
type queues struct {
	pools, plain                 redisscript.Keys
	capacityOf                   func() int
	plainCapacity                int
	mu                           sync.Mutex
	client                       *redis.Client // a client of the primary
	latest                       queueSample
	calm                         bool
	before                       *queueSample // the previous sample, if the calm had begun by then
	samples, grantsInTurn, waits int
	violation                    string
}

func newQueues(pools, plain string, capacityOf func() int, plainCapacity int) *queues {
	return &queues{
		pools:      redisscript.NewKeys(semaphore.DefaultPrefix + "-" + pools),
		plain:      redisscript.NewKeys(semaphore.DefaultPrefix + "-" + plain),
		capacityOf: capacityOf, plainCapacity: plainCapacity,
	}
}

// at sets which server is the primary.
func (q *queues) at(addr string) {
	client := redis.NewClient(&redis.Options{
		Addr: addr, DialTimeout: time.Second, ReadTimeout: time.Second, MaxRetries: -1,
		DialerRetries: 1, ContextTimeoutEnabled: true,
	})
	q.mu.Lock()
	old := q.client
	q.client, q.before = client, nil
	q.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

func (q *queues) watch(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		q.mu.Lock()
		client := q.client
		q.mu.Unlock()
		if l, err := q.sample(ctx, client); err == nil {
			q.add(client, l)
		}
		<-tick.C
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	_ = q.client.Close()
}

func (q *queues) sample(ctx context.Context, client *redis.Client) (queueSample, error) {
	l := queueSample{at: time.Now()}
	pools, plain := q.pools.All(), q.plain.All()
	var permits, waiters, plainPermits, plainQueue *redis.StringSliceCmd
	var sessions *redis.IntCmd
	_, err := client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		permits, waiters = p.ZRange(ctx, pools[0], 0, -1), p.ZRange(ctx, pools[1], 0, -1)
		plainPermits, plainQueue = p.ZRange(ctx, plain[0], 0, -1), p.ZRange(ctx, plain[1], 0, -1)
		sessions = p.ZCard(ctx, pools[3])
		return nil
	})
	if err != nil {
		return l, err
	}
	l.permits, l.waiters, l.plainPermits, l.plainQueue = permits.Val(), waiters.Val(),
		plainPermits.Val(), plainQueue.Val()
	l.sessions = int(sessions.Val())
	return l, nil
}

func (q *queues) add(client *redis.Client, l queueSample) {
	capacity := q.capacityOf()
	q.mu.Lock()
	defer q.mu.Unlock()
	if client != q.client {
		return
	}
	q.latest = l
	q.samples++
	if len(l.waiters) > 0 {
		q.waits++
	}
	if !q.calm {
		return
	}
	if n := len(l.permits); n > capacity {
		q.violate("%d permits of %d", n, capacity)
	}
	if n := len(l.plainPermits); n > q.plainCapacity {
		q.violate("%d plain permits of %d", n, q.plainCapacity)
	}
	if q.before != nil {
		q.inTurn(*q.before, l)
	}
	q.before = &l
}

// inTurn compares two consecutive samples.
func (q *queues) inTurn(before, now queueSample) {
	holds, waits := make(map[string]bool), make(map[string]bool)
	for _, id := range now.plainPermits {
		holds[id] = true
	}
	for _, request := range now.plainQueue {
		waits[request] = true
	}
	ahead := ""
	for _, request := range before.plainQueue {
		_, id, _ := strings.Cut(request, " ")
		switch {
		case holds[id] && ahead != "":
			q.violate("%q was granted before %q, which was first\nbefore: %q\nnow: %q", request,
				ahead, before.plainQueue, now.plainQueue)
		case holds[id]:
			q.grantsInTurn++
		case waits[request] && ahead == "":
			ahead = request
		}
	}
}

func (q *queues) violate(format string, args ...any) {
	if q.violation == "" {
		q.violation = fmt.Sprintf(format, args...)
	}
}

func (q *queues) setCalm(yes bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.calm, q.before = yes, nil
}

// now returns the latest sample, and whether it is recent.
func (q *queues) now() (queueSample, bool) {
	const recent = 200 * time.Millisecond
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.latest, time.Since(q.latest.at) < recent
}

// someoneWaits reports whether a pool waits for a permit.
func (q *queues) someoneWaits() bool {
	l, recent := q.now()
	return recent && len(l.waiters) > 0
}

func (q *queues) violated() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.violation
}
