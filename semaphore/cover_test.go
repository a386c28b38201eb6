package semaphore

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestCoverOfWhatIsNotHeldAnyMore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		if _, err := w.redis.ZRem("passbuddy-semaphore", p.ID()); err != nil {
			t.Fatal(err)
		}
		if err := f.connect(p); !errors.Is(err, ErrLost) {
			t.Errorf("what Redis does not know: %v, want ErrLost", err)
		}
		if p.Held() || f.heard("lost") != 1 {
			t.Error("still held")
		}
		if err := f.connect(p); !errors.Is(err, ErrLost) {
			t.Errorf("what was lost: %v, want ErrLost", err)
		}
		f.s.link.setCut(true)
	})
}

// Four connections are opened at once, and each is recorded within its own lease: they do not wait for one
// another where a reply takes 2 s.
func TestCoversOnASlowRedis(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 4, MaxAttempts: -1}, always(0))
		f := s.fencer(t, &postgres{})
		f.open(4)
		l.set(always(time.Second))
		var all sync.WaitGroup
		began := time.Now()
		for _, p := range f.granted() {
			all.Go(func() {
				if err := f.connect(p); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		// Each may need a connection first, and the first records are given up where replies were fast before.
		if took := time.Since(began); took > 9*time.Second {
			t.Errorf("took %v", took)
		}
		l.set(always(0))
		time.Sleep(5 * time.Second)
		f.end()
	})
}

// Redis hangs, and the lease is lost while a backend is recorded: its caller does not wait for longer than that.
func TestARecordEndsWithItsLease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 1}, always(0))
		f := s.fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		l.silence(true)
		time.Sleep(2500 * time.Millisecond)
		lost := make(chan time.Time, 1)
		go func() { <-p.Lost(); lost <- time.Now() }()
		if err := f.connect(p); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v, want ErrUnavailable", err)
		}
		if late := time.Since(<-lost); late > DefaultTTL/4+time.Millisecond { // it looks that often
			t.Errorf("it waited for %v after the loss", late)
		}
		l.silence(false)
	})
}

func TestCoverWithoutRedis(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		f.s.link.setCut(true)
		if err := f.connect(f.granted()[0]); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v, want ErrUnavailable", err)
		}
	})
}

// A reply that is lost, or a Redis that is away for less than the lease, ends no connection that was just made.
func TestCoverOutlastsAnOutage(t *testing.T) {
	for name, away := range map[string]func(*link, bool){"cut off": (*link).setCut, "unheard": (*link).setDeaf} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
				f.open(1)
				away(f.s.link, true)
				time.AfterFunc(2*time.Second, func() { away(f.s.link, false) })
				if err := f.connect(f.granted()[0]); err != nil {
					t.Error(err)
				}
				if got := w.redis.HGet("{passbuddy-semaphore}:backends", f.granted()[0].ID()); got == "" {
					t.Error("not recorded")
				}
				w.reckoned(t)
			})
		})
	}
}

// What is said of a connection that is gone comes after what is said of the next one under its permit.
func TestCoverIsOvertaken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		first := f.share.Cover(p, Backend{PID: 101, Start: 2})
		second := f.share.Cover(p, Backend{PID: 102, Start: 1}) // the server's clock was set back
		id := p.ID()
		recorded := func(want string) {
			t.Helper()
			if got := w.redis.HGet("{passbuddy-semaphore}:backends", id); !strings.HasPrefix(got, want+" ") {
				t.Errorf("%q is recorded, want %q", got, want)
			}
		}
		for _, record := range []func(context.Context) error{second, first} {
			if err := record(t.Context()); err != nil {
				t.Fatal(err)
			}
			recorded("102 1")
		}
		w.redis.Del("{passbuddy-semaphore}:backends")
		if err := first(t.Context()); err != nil {
			t.Fatal(err)
		}
		recorded("101 2")
		time.Sleep(2 * time.Second) // a heartbeat
		recorded("102 1")

		// The permit is given back meanwhile.
		third := f.share.Cover(p, Backend{PID: 103, Start: 3})
		f.end()
		synctest.Wait()
		if err := third(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("of a permit that is given back: %v, want ErrLost", err)
		}
		w.reckoned(t)
	})
}

// A caller who gives up a slow request cuts its connection. That is no concern of those who connect.
func TestCoverIsNotCut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		f := s.fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		s.link.setDeaf(true)
		outcome := make(chan error, 1)
		go func() { outcome <- f.connect(p) }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := s.TryAcquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("bug in the test: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
		s.link.setDeaf(false)
		if err := <-outcome; err != nil {
			t.Error(err)
		}
	})
}

// Who finds the state lost while it records re-asserts it first.
func TestCoverFindsTheStateLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		w.redis.FlushAll()
		if err := f.connect(f.granted()[0]); err != nil {
			t.Fatal(err)
		}
		if !f.granted()[0].Held() || f.s.snapshot(t).Held != 1 {
			t.Error("not held any more")
		}
		w.reckoned(t)
	})
}
