package integration

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/engine"
	words "github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/semaphore"
)

// 2,000 sessions need some 4,100 sockets in this process and as many in Redis.
const raiseTheLimit = "%v (should sockets have run out, raise ulimit -n)"

// The cost of a heartbeat to Redis, from 10 sessions to 2,000, each with five permits. The rival is
// a script with only a ZADD XX of five members, in a set as large and from as many connections.
//
// script-µs is the time within the script, by the wall clock: a busy machine adds to it. cpu-µs is
// the CPU time of the whole server, network included.
func BenchmarkHeartbeat(b *testing.B) {
	for _, sessions := range []int{10, 100, 500, 1000, 2000} {
		// Some 500 heartbeats a second, but leases of at least six seconds, which a busy machine
		// can keep.
		interval := max(time.Duration(sessions)*2*time.Millisecond, 2*time.Second)
		b.Run(fmt.Sprintf("sessions=%d/rival=zadd", sessions), func(b *testing.B) {
			r, c := startRedis(b)
			idle := idleCPU(b, c)
			ctx, cancel := context.WithCancel(context.Background())
			defer zaddXX(ctx, b, r.Addr(), c, sessions, interval).Wait()
			defer cancel()
			measureHeartbeats(b, c, sessions, interval, idle)
		})
		b.Run(fmt.Sprintf("sessions=%d/passbuddy", sessions), func(b *testing.B) {
			_, c := startRedis(b)
			idle := idleCPU(b, c)
			joinMany(b, c, sessions, 3*interval, false)
			measureHeartbeats(b, c, sessions, interval, idle)
		})
		b.Run(fmt.Sprintf("sessions=%d/passbuddy=pool", sessions), func(b *testing.B) {
			_, c := startRedis(b)
			idle := idleCPU(b, c)
			joinMany(b, c, sessions, 3*interval, true)
			measureHeartbeats(b, c, sessions, interval, idle)
		})
	}
}

// A busyPool reports the figures of a pool in use, which change from heartbeat to heartbeat.
type busyPool struct {
	bubble.Listener[*engine.Permit]
	beats int64
}

func (p *busyPool) Report() words.PoolFigures {
	p.beats++
	return words.PoolFigures{Name: "db.internal:5432/orders", InUse: 3, Idle: 2, Waiting: 1,
		Opened: 40 + p.beats, Waits: 1000 + 10*p.beats, WaitTime: 7 * time.Second}
}

// The cost to Redis of a fleet of 1,000 sessions with five permits each, at a lease of half a
// minute, heartbeats and subscriptions included.
func BenchmarkThousandSessions(b *testing.B) {
	const ttl = 30 * time.Second
	_, c := startRedis(b)
	joinMany(b, c, 1000, ttl, false)
	measureHeartbeats(b, c, 1000, ttl/3, 0)
}

const heldByEach = 5

// joinMany starts sessions that hold five permits each, until the end of the benchmark. pool: each
// has a pool that reports its figures.
func joinMany(b *testing.B, c *redis.Client, sessions int, ttl time.Duration, pool bool) {
	b.Helper()
	var mu sync.Mutex
	var fleet []*semaphore.Semaphore
	b.Cleanup(func() {
		var wg sync.WaitGroup
		for _, s := range fleet {
			wg.Go(func() { _ = s.Close() })
		}
		wg.Wait()
	})
	each(b, sessions, func(int) error {
		s, err := semaphore.New(context.Background(), c, semaphore.Config{
			Name: "heartbeat", Capacity: (heldByEach + 1) * sessions, TTL: ttl,
			Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return err
		}
		mu.Lock()
		fleet = append(fleet, s)
		mu.Unlock()
		if _, err = s.AcquireN(b.Context(), heldByEach); err != nil || !pool {
			return err
		}
		listener := &busyPool{}
		p, err := s.Engine(engine.Seam{}).NewPool(listener)
		if err == nil {
			listener.Return = p.Give
			p.Ask(1)
		}
		return err
	})
}

// each calls f(0) to f(n-1), some of them at a time.
func each(b *testing.B, n int, f func(i int) error) {
	b.Helper()
	var wg sync.WaitGroup
	const together = 16
	for g := range together {
		wg.Go(func() {
			for i := g; i < n && !b.Failed(); i += together {
				if err := f(i); err != nil {
					b.Errorf(raiseTheLimit, err)
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// zaddXX is the least that can renew: one ZADD of a client's members for each of its beats, on a
// connection of its own.
func zaddXX(
	ctx context.Context, b *testing.B, addr string, c *redis.Client, clients int,
	interval time.Duration,
) *sync.WaitGroup {
	b.Helper()
	script := redis.NewScript(`return redis.call('ZADD', KEYS[1], 'XX', unpack(ARGV))`)
	members := func(i int) (z []redis.Z, argv []any) {
		for p := range heldByEach {
			id := fmt.Sprintf("%08d-0000-4000-8000-%012d", i, p)
			z = append(z, redis.Z{Score: 1, Member: id})
			argv = append(argv, 0, id)
		}
		return z, argv
	}
	var wg sync.WaitGroup
	own := make([]*redis.Client, clients)
	each(b, clients, func(i int) error {
		z, _ := members(i)
		if err := c.ZAdd(ctx, "rival", z...).Err(); err != nil {
			return err
		}
		own[i] = redis.NewClient(&redis.Options{Addr: addr, PoolSize: 1})
		return own[i].Ping(ctx).Err()
	})
	if err := script.Load(ctx, c).Err(); err != nil {
		b.Fatal(err)
	}
	for i, mine := range own {
		wg.Go(func() {
			defer mine.Close()
			_, argv := members(i)
			timer := time.NewTimer(rand.N(interval)) // they did not start together
			for {
				select {
				case <-ctx.Done():
					return
				case <-timer.C:
				}
				timer.Reset(interval - rand.N(interval/8))
				expiry := time.Now().UnixMilli()
				for n := 0; n < len(argv); n += 2 {
					argv[n] = expiry
				}
				if err := script.EvalSha(ctx, mine, []string{"rival"}, argv...).Err(); err != nil &&
					ctx.Err() == nil {
					b.Error(err)
					return
				}
			}
		})
	}
	return &wg
}

// idleCPU returns the part of a core that the server uses for its own timers, without a client's
// request.
func idleCPU(b *testing.B, c *redis.Client) float64 {
	b.Helper()
	cpu, began := redisCPU(b, c), time.Now()
	time.Sleep(2 * time.Second)
	return (redisCPU(b, c) - cpu).Seconds() / time.Since(began).Seconds()
}

// measureHeartbeats reports the server's use over three intervals with only heartbeats, less the
// given part of a core.
func measureHeartbeats(
	b *testing.B, c *redis.Client, sessions int, interval time.Duration, idle float64,
) {
	b.Helper()
	for range b.N {
		beats, within := evalshas(b, c)
		cpu, began := redisCPU(b, c), time.Now()
		time.Sleep(3 * interval)
		spent, took := redisCPU(b, c)-cpu, time.Since(began).Seconds()
		beatsAfter, withinAfter := evalshas(b, c)
		if beats = beatsAfter - beats; beats == 0 {
			b.Fatal("no heartbeat in the time")
		}
		used := spent.Seconds() - idle*took
		b.ReportMetric((withinAfter-within)/beats, "script-µs/beat")
		b.ReportMetric(1e6*used/beats, "cpu-µs/beat")
		b.ReportMetric(1e6*used/float64(sessions)/took, "cpu-µs/session/s")
		b.ReportMetric(100*used/took, "core-%")
		b.ReportMetric(0, "ns/op")
		if held := c.ZCard(b.Context(), "passbuddy-heartbeat").Val(); held != 0 &&
			held < int64(heldByEach*sessions) {
			b.Errorf("%d permits are held, want %d: the machine was too busy to keep them", held,
				heldByEach*sessions)
		}
	}
}

// redisCPU returns the CPU time that the server has used.
func redisCPU(t testing.TB, c *redis.Client) (used time.Duration) {
	t.Helper()
	for line := range strings.Lines(c.Info(context.Background(), "cpu").Val()) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), ":"); key {
		case "used_cpu_sys", "used_cpu_user":
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			used += time.Duration(seconds * float64(time.Second))
		}
	}
	return used
}

// evalshas returns how many scripts the server has run, and the time within them in microseconds.
func evalshas(t testing.TB, c *redis.Client) (calls, micros float64) {
	t.Helper()
	for line := range strings.Lines(c.Info(context.Background(), "commandstats").Val()) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_evalsha:"); ok {
			if _, err := fmt.Sscanf(rest, "calls=%f,usec=%f", &calls, &micros); err != nil {
				t.Fatal(err)
			}
		}
	}
	return calls, micros
}
