package passbuddytest_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/passbuddytest"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Processes share one capacity, and a permit that one gives back is granted to another that waits.
func TestProcessesShareTheCapacity(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(2))
		one, two, three := f.Semaphore(t), f.Semaphore(t), f.Semaphore(t)
		p, q := acquire(t, one), acquire(t, two)
		f.RequireHeld(t, 2)
		if _, err := three.Acquire(t.Context()); !errors.Is(err, semaphore.ErrCapacity) {
			t.Fatalf("with none free: %v, want ErrCapacity", err)
		}
		r := three.NewPermit()
		granted := make(chan error)
		go func() {
			err := semaphore.ErrCapacity
			for errors.Is(err, semaphore.ErrCapacity) {
				err = r.Acquire(t.Context())
			}
			granted <- err
		}()
		awaitWaiters(t, three, 1)
		release(t, p)
		if err := await(t, granted, "the waiter"); err != nil {
			t.Fatal(err)
		}
		release(t, q, r)
		f.RequireNoLeak(t)
	})
}

// Fleets know nothing of each other, whatever their names.
func TestFleetsAreApart(t *testing.T) {
	f, g := passbuddytest.New(t, short(1)), passbuddytest.New(t, short(1))
	p := acquire(t, f.Semaphore(t))
	q := acquire(t, g.Semaphore(t))
	f.RequireHeld(t, 1)
	release(t, p)
	f.RequireNoLeak(t)
	g.RequireHeld(t, 1)
	release(t, q)
}

// A wait of minutes takes none in a bubble.
func TestFakeTime(t *testing.T) {
	real := time.Now()
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, passbuddytest.Config{Capacity: 1, MaxAttempts: -1})
		f.Exhaust(t)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		began := time.Now()
		_, err := f.Semaphore(t).Acquire(ctx)
		if !errors.Is(err, semaphore.ErrCapacity) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want ErrCapacity and DeadlineExceeded", err)
		}
		if took := time.Since(began); took != 2*time.Minute {
			t.Errorf("took %v of fake time, want 2m", took)
		}
	})
	if took := time.Since(real); took > 5*time.Minute {
		t.Errorf("took %v of real time", took)
	}
}

// Code can open its own semaphore: over Client anywhere, over URL outside of a bubble.
func TestOwnSemaphores(t *testing.T) {
	cfg := short(1)
	cfg.Prefix, cfg.Name, cfg.Logger = "app", "orders", slog.New(slog.DiscardHandler)
	run := func(t *testing.T, open func(f *passbuddytest.Fleet) (*semaphore.Semaphore, error)) {
		f := passbuddytest.New(t, cfg)
		sem, err := open(f)
		if err != nil {
			t.Fatal(err)
		}
		p := acquire(t, sem)
		f.RequireHeld(t, 1)
		if _, err := f.Semaphore(t).TryAcquire(t.Context()); !errors.Is(err, semaphore.ErrCapacity) {
			t.Errorf("TryAcquire of another process: %v, want ErrCapacity", err)
		}
		f.Expire(t, sem)
		if p.Held() {
			t.Error("held after Expire")
		}
		q := acquire(t, sem)
		f.Down(t)
		if _, err := sem.Acquire(t.Context()); !errors.Is(err, semaphore.ErrUnavailable) {
			t.Errorf("Acquire while Redis is down: %v, want ErrUnavailable", err)
		}
		f.Up(t)
		f.RequireHeld(t, 1)
		release(t, q)
		if err := sem.Close(); err != nil {
			t.Error(err)
		}
		f.RequireNoLeak(t)
	}
	inBoth(t, func(t *testing.T) {
		run(t, func(f *passbuddytest.Fleet) (*semaphore.Semaphore, error) {
			return semaphore.New(t.Context(), f.Client(t), cfg)
		})
	})
	t.Run("URL", func(t *testing.T) {
		run(t, func(f *passbuddytest.Fleet) (*semaphore.Semaphore, error) {
			if url, again := f.URL(t), f.URL(t); url != again {
				t.Errorf("URL is %s, then %s", url, again)
			}
			return semaphore.Open(t.Context(), f.URL(t), cfg)
		})
	})
}

// A refusal names the field and its value.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		cfg  passbuddytest.Config
		want []string
	}{
		{passbuddytest.Config{Capacity: -1}, []string{"Config.Capacity", "-1"}},
		{passbuddytest.Config{TTL: time.Nanosecond}, []string{"Config.TTL", "1ns"}},
		{passbuddytest.Config{Name: "a{b}"}, []string{"Config.Name", "a{b}"}},
		{passbuddytest.Config{Min: 3, Max: 2}, []string{"Config.Max", "2"}},
		{passbuddytest.Config{Capacity: 2, Min: 3}, []string{"Config.Min", "3"}},
	} {
		got := failure(func(t *fakeT) { passbuddytest.New(t, c.cfg) })
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("New with %+v says %q, want %q in it", c.cfg, got, want)
			}
		}
	}
	for want, f := range map[string]func(t *fakeT){
		"n is -1": func(t *fakeT) { passbuddytest.New(t, passbuddytest.Config{}).RequireHeld(t, -1) },
		"Expire: the semaphore is nil": func(t *fakeT) {
			passbuddytest.New(t, passbuddytest.Config{}).Expire(t, nil)
		},
		"not of this fleet": func(t *fakeT) {
			f, g := passbuddytest.New(t, passbuddytest.Config{}),
				passbuddytest.New(t, passbuddytest.Config{})
			f.Expire(t, g.Semaphore(t))
		},
		"Redis is unavailable": func(t *fakeT) {
			f := passbuddytest.New(t, passbuddytest.Config{})
			f.Down(t)
			f.Semaphore(t)
		},
	} {
		if got := failure(f); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
	defer func() {
		if got, _ := recover().(string); !strings.Contains(got, "t is nil") {
			t.Errorf("New(nil) panics with %q", got)
		}
	}()
	passbuddytest.New(nil, passbuddytest.Config{})
}

// A fleet belongs to the bubble that it was made in, and sockets to none.
func TestBubblesAreApart(t *testing.T) {
	outside := passbuddytest.New(t, passbuddytest.Config{})
	synctest.Test(t, func(t *testing.T) {
		got := failure(func(t *fakeT) { outside.Semaphore(t) })
		if !strings.Contains(got, "inside a synctest bubble, but New was called outside") {
			t.Errorf("Semaphore of a fleet from outside: %q", got)
		}
		f := passbuddytest.New(t, passbuddytest.Config{})
		if got := failure(func(t *fakeT) { f.URL(t) }); !strings.Contains(got, "use Client") {
			t.Errorf("URL in a bubble: %q", got)
		}
	})
}

// The helpers say what stayed behind, and whose it is.
func TestLeaksAreShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := func(want []string, f func(f *passbuddytest.Fleet, t *fakeT)) {
			t.Helper()
			fleet := passbuddytest.New(t, short(2))
			got := failure(func(t *fakeT) { f(fleet, t) })
			for _, want := range want {
				if !strings.Contains(got, want) {
					t.Errorf("got %q, want %q in it", got, want)
				}
			}
		}
		check([]string{"RequireNoLeak: permits held: 1, still after 20s", "capacity 2, held 1",
			"process 1: holds 1, waiting 0"},
			func(f *passbuddytest.Fleet, ft *fakeT) {
				acquire(t, f.Semaphore(ft))
				f.RequireNoLeak(ft)
			})
		check([]string{"RequireHeld: permits held: 1, want 2"},
			func(f *passbuddytest.Fleet, ft *fakeT) {
				acquire(t, f.Semaphore(ft))
				f.RequireHeld(ft, 2)
			})
		check([]string{"permits held: 2, requests waiting: 1"},
			func(f *passbuddytest.Fleet, ft *fakeT) {
				f.Exhaust(ft)
				sem := f.Semaphore(ft)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					for ctx.Err() == nil {
						_, _ = sem.Acquire(ctx)
					}
				}()
				f.RequireNoLeak(ft)
			})
		check([]string{`the session of "left behind" was not closed`},
			func(f *passbuddytest.Fleet, ft *fakeT) {
				cfg := short(2)
				cfg.Owner = "left behind"
				sem, err := semaphore.New(t.Context(), f.Client(t), cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer sem.Close()
				f.RequireNoLeak(ft)
			})
		check([]string{"Exhaust: granted 1 of 2 permits", "process 1: holds 1",
			"Exhaust: holds 1"},
			func(f *passbuddytest.Fleet, ft *fakeT) {
				acquire(t, f.Semaphore(ft))
				f.Exhaust(ft)
			})
	})
}

// Sessions log to the test that has opened them.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		ft := new(fakeT)
		acquire(t, f.Semaphore(ft))
		f.ExpireLeases(t)
		if got := ft.end(); got != "" {
			t.Error(got)
		}
		if got := ft.output.String(); !strings.Contains(got, "lease lost") {
			t.Errorf("the log is %q", got)
		}
	})
}

// A session that was closed is left behind only until it has left.
func TestClosedSessionsAreNoLeak(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		sem := f.Semaphore(t)
		acquire(t, sem)
		if err := sem.Close(); err != nil {
			t.Fatal(err)
		}
		f.RequireNoLeak(t)
	})
}

// A session that could not leave is left behind until its lease is over.
func TestSessionsThatCouldNotLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		sem := f.Semaphore(t)
		f.Down(t)
		if err := sem.Close(); !errors.Is(err, semaphore.ErrUnavailable) {
			t.Errorf("Close: %v, want ErrUnavailable", err)
		}
		f.Up(t)
		f.RequireNoLeak(t)
		inspector, err := semaphore.NewInspector(f.Client(t), "", "")
		if err != nil {
			t.Fatal(err)
		}
		s, err := inspector.Snapshot(t.Context())
		if err != nil || len(s.Sessions) != 0 {
			t.Errorf("%d sessions are left: %v", len(s.Sessions), err)
		}
	})
}
