package semaphore

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

func smokeClient(t testing.TB) redis.UniversalClient {
	addr := os.Getenv("SMOKE")
	if addr == "" {
		addr = miniredis.RunT(t).Addr()
	}
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSmoke(t *testing.T) {
	c := smokeClient(t)
	ctx := context.Background()
	a, err := New(c, Config{Name: t.Name(), Capacity: 2, RetryInterval: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := New(c, Config{Name: t.Name(), Capacity: 2, RetryInterval: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p1, err := a.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.TryAcquire(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.TryAcquire(ctx); err == nil {
		t.Fatal("over")
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		t0 := time.Now()
		p, err := b.Acquire(ctx)
		t.Log(time.Since(t0), p, err)
	}()
	for {
		s, err := a.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Waiters) == 1 {
			t.Logf("%+v", s)
			break
		}
	}
	t1 := time.Now()
	if err := p1.Release(ctx); err != nil {
		t.Fatal(err)
	}
	t.Log(time.Since(t1))
	wg.Wait()
	t.Log(time.Since(t1))
}

func BenchmarkPair(b *testing.B) {
	c := smokeClient(b)
	ctx := context.Background()
	s, err := New(c, Config{Name: b.Name(), Capacity: 100})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.Run("lone", func(b *testing.B) {
		for b.Loop() {
			p, err := s.Acquire(ctx)
			if err != nil {
				b.Fatal(err)
			}
			p.Release(ctx)
		}
	})
	b.Run("evalsha", func(b *testing.B) {
		sc := redis.NewScript("return 1")
		for b.Loop() {
			sc.Run(ctx, c, []string{"x"}).Result()
			sc.Run(ctx, c, []string{"x"}).Result()
		}
	})
	b.Run("64", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				p, err := s.Acquire(ctx)
				if err != nil {
					b.Fatal(err)
				}
				p.Release(ctx)
			}
		})
	})
	b.Run("64evalsha", func(b *testing.B) {
		sc := redis.NewScript("return redis.call('zadd',KEYS[1],1,ARGV[1])")
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				sc.Run(ctx, c, []string{"xz"}, 3).Result()
				sc.Run(ctx, c, []string{"xz"}, 4).Result()
			}
		})
	})
}
