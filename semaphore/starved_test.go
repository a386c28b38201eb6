package semaphore

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestBigHeadSpins(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 3, TTL: time.Minute, MaxAttempts: -1}
		a, b, d := w.join(cfg), w.join(cfg), w.join(cfg)
		b.acquire(t)
		d.acquire(t)
		d.link.setCut(true)
		began := time.Now()
		done, took := make(chan struct{}), time.Duration(0)
		go func() {
			defer close(done)
			if _, err := a.AcquireN(t.Context(), 2); err != nil {
				t.Error(err)
			}
			took = time.Since(began)
		}()
		time.Sleep(61*time.Second - time.Since(began)) // d's lease is over for a second
		n := w.redis.CommandCount()
		time.Sleep(time.Second)
		if n = w.redis.CommandCount() - n; n > 20 {
			t.Errorf("%d commands in a second: a busy loop", n)
		}
		<-done
		if took > time.Minute+time.Second/2 {
			t.Errorf("granted %v after the lease in the way was over; RetryInterval is 500ms", took-time.Minute)
		}
	})
}

func TestMaxStarvesBehindTheHog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 5, Max: 1})
		a, b := s.pool(t), s.pool(t)
		a.obey, b.obey = true, true
		a.share.Ask(3) // 3 callers wait in pool a
		if a.heard("granted") != 1 {
			t.Fatal("bug in the test")
		}
		a.share.Ask(2) // as allotment.settle does after a grant: two still wait
		b.share.Ask(1)
		time.Sleep(time.Minute)
		if b.heard("granted") == 0 {
			t.Errorf("a told %q, b told %q: starved for a minute", a.told, b.told)
		}
	})
}

func TestMaxStarvesWhileTheHogAsks(t *testing.T) {
	for _, most := range []int{0, 2} {
		t.Run(fmt.Sprint("Max ", most), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				x, y := w.join(Config{Capacity: 2, Max: most}), w.join(Config{Capacity: 2})
				a, b, c := x.pool(t), x.pool(t), y.pool(t)
				a.obey, b.obey, c.obey = true, true, true
				c.share.Ask(1)
				synctest.Wait()
				a.share.Ask(1)
				if a.heard("granted") != 1 || c.heard("granted") != 1 {
					t.Fatal("bug in the test")
				}
				a.share.Ask(1) // saturated: waits in Redis; shares are even, so it is not served
				synctest.Wait()
				b.share.Ask(1)
				time.Sleep(time.Minute)
				if b.heard("granted") == 0 {
					t.Errorf("a told %q, b told %q: starved for a minute", a.told, b.told)
				}
			})
		})
	}
}

func TestBehindAsksForMoreThanThereIs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 20, Max: 10, MaxAttempts: -1})
		var plain []*Permit
		for range 5 {
			plain = append(plain, s.acquire(t))
		}
		go func() { _, _ = s.AcquireN(t.Context(), 6) }()
		synctest.Wait()
		a := s.pool(t)
		a.share.Ask(5)
		release(t, plain[0]) // the six are granted
		synctest.Wait()
		release(t, plain[1])
		release(t, plain[2])
		time.Sleep(time.Minute)
		if got := s.snapshot(t).Held; got < 10 && a.heard("granted") == 0 {
			t.Errorf("%d held of Max 10, and a pool that could use one waits for a minute", got)
		}
	})
}

func TestRichestLooksAt64(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 130, Min: 128, MaxAttempts: -1})
		for range 64 {
			p := a.pool(t)
			p.share.Ask(2)
			if p.heard("granted") != 1 {
				t.Fatal("bug in the test")
			}
		}
		time.Sleep(time.Second)
		b := w.join(Config{Capacity: 130, MaxAttempts: -1})
		hog := b.pool(t)
		hog.obey = true
		hog.share.Ask(2)
		if hog.heard("granted") != 1 {
			t.Fatal("bug in the test")
		}
		c := w.join(Config{Capacity: 130, MaxAttempts: -1})
		q := c.later(t.Context())
		time.Sleep(time.Minute)
		if !q.isDone() {
			t.Errorf("waits for a minute; the hog, of two, was told %q", hog.told)
		}
	})
}
