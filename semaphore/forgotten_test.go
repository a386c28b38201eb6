package semaphore

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/subset"
)

func TestLeaveAfterClockStep(t *testing.T) {
	for _, how := range []string{"leave", "capacity"} {
		t.Run(how, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 1, MaxAttempts: -1}
				a, b, c := w.join(cfg), w.join(cfg), w.join(cfg)
				p := a.acquire(t)
				time.Sleep(100 * time.Millisecond)
				w.redis.SetTime(time.Now().Add(time.Hour))
				if how == "leave" {
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
				} else if err := b.SetCapacity(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				q, err := c.TryAcquire(t.Context())
				if err == nil && p.Held() && q.Held() {
					t.Error("two hold the only permit")
				}
			})
		})
	}
}

func TestNewcomerAfterStepShorterThanTTL(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		p := a.acquire(t)
		time.Sleep(1 * time.Second)
		if err := b.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		w.redis.SetTime(time.Now().Add(3800 * time.Millisecond))
		c := w.join(cfg)
		q, err := c.TryAcquire(t.Context())
		if err == nil && p.Held() && q.Held() {
			t.Error("two hold the only permit")
		}
	})
}

func TestStepBelowSTEP(t *testing.T) {
	t.Run("TTL 1s", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			cfg := Config{Capacity: 1, MaxAttempts: -1, TTL: time.Second}
			a, b := w.join(cfg), w.join(cfg)
			p := a.acquire(t)
			time.Sleep(100 * time.Millisecond)
			w.redis.SetTime(time.Now().Add(950 * time.Millisecond))
			q, err := b.TryAcquire(t.Context())
			if err == nil && p.Held() && q.Held() {
				t.Error("two hold the only permit")
			}
		})
	})
	t.Run("default TTL, holder cut off", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			cfg := Config{Capacity: 1, MaxAttempts: -1}
			a, b := w.join(cfg), w.join(cfg)
			p := a.acquire(t)
			a.link.setCut(true)
			time.Sleep(4200 * time.Millisecond)
			w.redis.SetTime(time.Now().Add(950 * time.Millisecond))
			q, err := b.TryAcquire(t.Context())
			if err == nil && p.Held() && q.Held() {
				t.Error("two hold the only permit")
			}
		})
	})
}

func TestCountDriftHidesALostSet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 4, MaxAttempts: -1}
		a, b, c := w.join(cfg), w.join(cfg), w.join(cfg)
		for i := range 2 { // the original's clients hold two, and crash
			_, _ = w.redis.ZAdd("passbuddy-semaphore", float64(time.Now().Add(time.Second).UnixMilli()), fmt.Sprintf("7b1c0f0e-2d3a-4c5b-8a69-0123456789a%d", i))
		}
		p, q := a.acquire(t), b.acquire(t)
		time.Sleep(5 * time.Second)
		t.Logf("count is %s, 2 are held", w.redis.HGet("{passbuddy-semaphore}:meta", "count"))
		w.redis.Del("passbuddy-semaphore")
		n := 0
		for {
			if _, err := c.TryAcquire(t.Context()); err != nil {
				break
			}
			n++
		}
		if n > 2 && p.Held() && q.Held() {
			t.Errorf("granted %d of 4 while 2 others are held", n)
		}
	})
}

func TestDeadWaitersFillTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, MaxAttempts: -1, MaxWaiters: 2}
		a := w.join(cfg)
		a.acquire(t) // a leader, for days
		for range 2 {
			d := w.join(cfg)
			d.later(t.Context())
			d.link.setCut(true)
		}
		since := subset.Length(time.Minute, time.Hour)
		time.Sleep(since)
		b := w.join(cfg)
		if got := b.later(t.Context()); got.isDone() {
			t.Errorf("%v after they died: %v; %d waiters", since, got.err, len(a.snapshot(t).Waiters))
		}
	})
}

func TestWithdrawnDuringAnOutageStaysQueued(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, MaxAttempts: -1}
		a, b := w.join(cfg), w.join(cfg)
		a.acquire(t)
		ctx, cancel := context.WithCancel(t.Context())
		q := b.later(ctx)
		b.link.setCut(true)
		cancel()
		time.Sleep(6 * time.Second)
		b.link.setCut(false)
		if !q.isDone() {
			t.Fatal("bug in the test")
		}
		since := subset.Length(time.Minute, time.Hour)
		time.Sleep(since)
		if got := len(a.snapshot(t).Waiters); got != 0 {
			b.mu.Lock()
			defer b.mu.Unlock()
			t.Errorf("%d waiters in Redis %v later, b has %d asks", got, since, len(b.asks))
		}
	})
}

func TestLostRecall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1, TTL: time.Minute}), w.join(Config{Capacity: 1, TTL: time.Minute, MaxAttempts: -1})
		p := a.pool(t)
		p.obey = true
		p.share.Ask(1)
		if p.heard("granted") != 1 {
			t.Fatal("bug in the test")
		}
		a.link.setCut(true) // for an instant, in which the recall is pushed
		q := b.later(t.Context())
		a.link.setCut(false)
		<-q.done
		if q.took > time.Second {
			t.Errorf("waited %v; the subscription was back long before: %q", q.took, strings.Join(p.told, " "))
		}
	})
}

type before struct {
	script string
	do     func()
}

func (before) DialHook(next redis.DialHook) redis.DialHook { return next }
func (d before) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); len(args) > 1 && args[1] == d.script {
			d.do()
		}
		return next(ctx, cmd)
	}
}
func (before) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
