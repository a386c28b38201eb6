package integration

import (
	"context"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// startRedis is startServers without Postgres.
func startRedis(t testing.TB) (*throwaway.Redis, *redis.Client) {
	t.Helper()
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	c := redis.NewClient(&redis.Options{Addr: r.Addr(), PoolSize: 64})
	t.Cleanup(func() { _ = c.Close() })
	return r, c
}

func join(t testing.TB, c *redis.Client, capacity int) *semaphore.Semaphore {
	t.Helper()
	s, err := semaphore.New(context.Background(), c, semaphore.Config{Name: t.Name(),
		Capacity: capacity, TTL: time.Minute, RetryInterval: 10 * time.Second, MaxAttempts: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// oneLine is the least that a script which changes a key can do.
var oneLine = redis.NewScript(`return redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])`)

// An acquire that need not wait, and its release, beside a bare EVALSHA of a script of one line.
// They run in turn, so that a slow machine slows both.
func BenchmarkUncontended(b *testing.B) {
	nearAndFar(b, uncontended)
}

// nearAndFar runs f over loopback, and over a network that takes 200 µs each way.
func nearAndFar(b *testing.B, f func(b *testing.B, c *redis.Client)) {
	r, c := startRedis(b)
	b.Run("loopback", func(b *testing.B) { f(b, c) })
	far := redis.NewClient(&redis.Options{
		Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, r.Addr())
			return farConn{conn}, err
		},
	})
	defer far.Close()
	b.Run("200µs", func(b *testing.B) { f(b, far) })
}

// A farConn has its bytes arrive later, in both directions.
type farConn struct{ net.Conn }

const away = 200 * time.Microsecond

func (c farConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	travel()
	return n, err
}

func (c farConn) Write(p []byte) (int, error) {
	travel()
	return c.Conn.Write(p)
}

func travel() {
	for began := time.Now(); time.Since(began) < away; { // a timer's precision is no better
		runtime.Gosched()
	}
}

func uncontended(b *testing.B, c *redis.Client) {
	s := join(b, c, 10)
	bare := func() {
		if err := oneLine.Run(b.Context(), c, []string{"rival"}, 1, "member").Err(); err != nil {
			b.Fatal(err)
		}
	}
	var p *semaphore.Permit
	inTurn(b, "evalsha", bare, map[string]func(){
		"acquire": func() {
			var err error
			if p, err = s.Acquire(b.Context()); err != nil {
				b.Fatal(err)
			}
		},
		"release": func() {
			if err := p.Release(b.Context()); err != nil {
				b.Fatal(err)
			}
		},
	})
}

// inTurn runs the rival and ours, ours in the order of their names, b.N times. It runs them in
// stretches of 20, so that caches are as warm as in a loop of one. It reports the median of each
// and, for ours, its ratio to the rival's.
func inTurn(b *testing.B, rivalName string, rival func(), ours map[string]func()) {
	names := slices.Sorted(maps.Keys(ours))
	took := make(map[string][]time.Duration)
	timed := func(name string, step func()) {
		began := time.Now()
		step()
		took[name] = append(took[name], time.Since(began))
	}
	for n := 0; n < b.N; {
		for range 20 * len(names) {
			timed(rivalName, rival)
		}
		for range 20 {
			for _, name := range names {
				timed(name, ours[name])
			}
			n++
		}
	}
	b.StopTimer()
	b.ReportMetric(0, "ns/op") // The time of all together is meaningless.
	beside := float64(median(took[rivalName]))
	b.ReportMetric(beside/1000, rivalName+"-p50-µs")
	for _, name := range names {
		p50 := float64(median(took[name]))
		b.ReportMetric(p50/1000, name+"-p50-µs")
		b.ReportMetric(p50/beside, name+"-ratio")
	}
}

func median(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/2]
}

func pair(b *testing.B, s *semaphore.Semaphore) {
	p, err := s.Acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Release(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// The time from a release in one session until the grant in another, beside a bare PUBLISH until
// its subscriber has the message. They run in turn. The longest time shows a lost push.
func BenchmarkHandOver(b *testing.B) { nearAndFar(b, releaseToGrant) }

func releaseToGrant(b *testing.B, c *redis.Client) {
	ps := c.Subscribe(b.Context(), "rival")
	defer ps.Close()
	if _, err := ps.Receive(b.Context()); err != nil {
		b.Fatal(err)
	}
	received := make(chan time.Time, 1)
	go func() {
		for range ps.Channel() {
			received <- time.Now()
		}
	}()

	s := [2]*semaphore.Semaphore{join(b, c, 1), join(b, c, 1)}
	held, err := s[0].Acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	type grant struct {
		p  *semaphore.Permit
		at time.Time
	}
	granted := make(chan grant, 1)
	next := 1
	var rival, ours []time.Duration
	for n := 0; n < b.N; n++ {
		began := time.Now()
		if err := c.Publish(b.Context(), "rival", "x").Err(); err != nil {
			b.Fatal(err)
		}
		rival = append(rival, (<-received).Sub(began))

		// The other session waits in the queue already.
		go func() {
			p, err := s[next].Acquire(b.Context())
			at := time.Now()
			if err != nil {
				b.Error(err)
			}
			granted <- grant{p, at}
		}()
		awaitWaiter(b, c)
		began = time.Now()
		if err := held.Release(b.Context()); err != nil {
			b.Fatal(err)
		}
		got := <-granted
		held, next = got.p, 1-next
		ours = append(ours, got.at.Sub(began))
	}
	b.ReportMetric(0, "ns/op") // The time of both together is meaningless.
	beside, p50 := float64(median(rival)), float64(median(ours))
	b.ReportMetric(beside/1000, "publish-p50-µs")
	b.ReportMetric(p50/1000, "handover-p50-µs")
	b.ReportMetric(p50/beside, "ratio")
	b.ReportMetric(float64(ours[len(ours)-1])/1000, "handover-max-µs")
}

func awaitWaiter(b *testing.B, c *redis.Client) {
	key := "{passbuddy-" + b.Name() + "}:queue"
	for c.ZCard(b.Context(), key).Val() == 0 {
		if b.Failed() {
			b.FailNow()
		}
	}
}

// 64 goroutines that acquire and release, beside the same with one plain script for each step.
func BenchmarkManyGoroutines(b *testing.B) {
	const goroutines = 64
	_, c := startRedis(b)
	together := func(b *testing.B, step func(ctx context.Context, i int) error) {
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				for i := g; i < b.N; i += goroutines {
					if err := step(b.Context(), g); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	b.Run("rival=evalsha", func(b *testing.B) {
		acquire := redis.NewScript(`if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
			return redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
			end return 0`)
		release := redis.NewScript(`return redis.call('ZREM', KEYS[1], ARGV[1])`)
		together(b, func(ctx context.Context, g int) error {
			id := fmt.Sprintf("00000000-0000-4000-8000-%012d", g)
			if err := acquire.Run(ctx, c, []string{"rival"}, 100, 1, id).Err(); err != nil {
				return err
			}
			return release.Run(ctx, c, []string{"rival"}, id).Err()
		})
	})
	b.Run("passbuddy", func(b *testing.B) {
		s := join(b, c, 100)
		together(b, func(ctx context.Context, _ int) error {
			p, err := s.Acquire(ctx)
			if err != nil {
				return err
			}
			return p.Release(ctx)
		})
	})
}

// The cost of an acquire and its release while others hold many permits.
func BenchmarkPermitsHeld(b *testing.B) {
	_, c := startRedis(b)
	for _, held := range []int{10, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			s := join(b, c, held+10)
			for n := held; n > 0; n -= 1000 {
				if _, err := s.AcquireN(b.Context(), min(n, 1000)); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				pair(b, s)
			}
		})
	}
}
