package passbuddytest_test

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/passbuddytest"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Exhaust leaves nothing to others until it is released; then those that wait are served.
func TestExhaust(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(3))
		sem := f.Semaphore(t)
		giveBack := f.Exhaust(t)
		f.RequireHeld(t, 3)
		if _, err := sem.TryAcquire(t.Context()); !errors.Is(err, semaphore.ErrCapacity) {
			t.Fatalf("TryAcquire: %v, want ErrCapacity", err)
		}
		granted := later(t, sem)
		awaitWaiters(t, sem, 1)
		giveBack()
		giveBack()
		if err := await(t, granted, "the waiter"); err != nil {
			t.Fatal(err)
		}
		f.RequireHeld(t, 1)
		if err := sem.Close(); err != nil {
			t.Fatal(err)
		}
		f.RequireNoLeak(t)
	})
}

// A minimum stays with its session.
func TestExhaustLeavesMinima(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := short(3)
		cfg.Min = 1
		f := passbuddytest.New(t, cfg)
		sem := f.Semaphore(t)
		f.Exhaust(t)
		f.RequireHeld(t, 2)
		acquire(t, sem)
		if _, err := sem.TryAcquire(t.Context()); !errors.Is(err, semaphore.ErrCapacity) {
			t.Errorf("beyond the minimum: %v, want ErrCapacity", err)
		}
	})
}

// More permits than Exhaust asks for at once.
func TestExhaustALot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1200))
		f.Exhaust(t)
		f.RequireHeld(t, 1200)
	})
}

// While Redis is down, commands fail as they do where nobody listens. Afterwards its data is there,
// and holders have lost nothing if it was back in time.
func TestDownAndUp(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(2))
		sem, client := f.Semaphore(t), f.Client(t)
		p := acquire(t, sem)
		if err := client.Set(t.Context(), "key", "kept", 0).Err(); err != nil {
			t.Fatal(err)
		}
		f.Down(t)
		f.Down(t)
		err := client.Ping(t.Context()).Err()
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("PING: %v, want ECONNREFUSED", err)
		}
		if _, err := sem.Acquire(t.Context()); !errors.Is(err, semaphore.ErrUnavailable) {
			t.Errorf("Acquire: %v, want ErrUnavailable", err)
		}
		if !p.Held() {
			t.Error("the permit was lost before its lease was over")
		}
		f.RequireHeld(t, 1)
		f.Up(t)
		if !sem.Stats().Up {
			t.Error("the session has not heard from Redis when Up returns")
		}
		if got, err := client.Get(t.Context(), "key").Result(); got != "kept" {
			t.Errorf("GET: %q, %v", got, err)
		}
		if !p.Held() {
			t.Error("the permit was lost")
		}
		release(t, p)
		f.RequireNoLeak(t)
	})
}

// Commands that wait for a reply fail at once.
func TestDownEndsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		client := f.Client(t).WithTimeout(time.Hour)
		if err := client.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		f.Delay(time.Hour)
		pinged := make(chan error)
		go func() { pinged <- client.Ping(t.Context()).Err() }()
		synctest.Wait()
		f.Down(t)
		if err := await(t, pinged, "the PING"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v, want ECONNREFUSED", err)
		}
	})
}

// A lease ends while Redis is down for longer.
func TestDownForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		sem := f.Semaphore(t)
		p := acquire(t, sem)
		f.Down(t)
		<-p.Lost()
		f.RequireHeld(t, 0) // a tenth of a lease later
		f.Up(t)
		acquire(t, sem)
		f.RequireHeld(t, 1)
	})
}

// A test may end while Redis is down, or slow.
func TestEndsInAFault(t *testing.T) {
	began := time.Now()
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		acquire(t, f.Semaphore(t))
		_ = f.Client(t).Ping(t.Context())
		f.Down(t)
	})
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		acquire(t, f.Semaphore(t))
		f.Delay(time.Hour)
	})
	t.Log("took", time.Since(began))
}

// Delay holds replies and pushes back, in their order, for exactly that long.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const d = 300 * time.Millisecond
		f := passbuddytest.New(t, short(1))
		client := f.Client(t)
		if err := client.Ping(t.Context()).Err(); err != nil { // connects
			t.Fatal(err)
		}
		pipe := client.Pipeline() // has connections of its own
		pipe.Set(t.Context(), "n", 0, 0)
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.Delay(d)
		began := time.Now()
		if err := client.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != d {
			t.Errorf("a PING took %v, want %v", took, d)
		}
		// A reply is held back; Redis is not.
		began = time.Now()
		first, second := pipe.Incr(t.Context(), "n"), pipe.Incr(t.Context(), "n")
		if _, err := pipe.Exec(t.Context()); err != nil || first.Val() != 1 || second.Val() != 2 {
			t.Errorf("INCR twice: %v, %v, %v", first, second, err)
		}
		if took := time.Since(began); took != d {
			t.Errorf("two commands together took %v, want %v", took, d)
		}
		f.Delay(-1)
		began = time.Now()
		if err := client.Ping(t.Context()).Err(); err != nil || time.Since(began) != 0 {
			t.Errorf("a PING without delay took %v: %v", time.Since(began), err)
		}
	})
}

func TestDelayOfPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const d = 300 * time.Millisecond
		cfg := short(1)
		cfg.MaxAttempts, cfg.RetryInterval = -1, time.Minute // only the push tells
		f := passbuddytest.New(t, cfg)
		one, two := f.Semaphore(t), f.Semaphore(t)
		p := acquire(t, one)
		granted := later(t, two)
		synctest.Wait()
		f.Delay(d)
		began := time.Now()
		go func() { _ = p.Release(t.Context()) }()
		if err := await(t, granted, "the grant"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != d {
			t.Errorf("the grant took %v, want %v", took, d)
		}
		f.Delay(0)
	})
}

// Delay(0) delivers what is held back, on a port too.
func TestDelayEnds(t *testing.T) {
	f := passbuddytest.New(t, short(1))
	client := f.Client(t)
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	const d = 200 * time.Millisecond
	f.Delay(d)
	began := time.Now()
	sem, err := semaphore.Open(t.Context(), f.URL(t), short(1))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < d {
		t.Errorf("a session began in %v, want at least %v", took, d)
	}
	f.Delay(time.Hour)
	pinged := make(chan error)
	go func() { pinged <- client.WithTimeout(time.Hour).Ping(t.Context()).Err() }()
	time.AfterFunc(10*time.Millisecond, func() { f.Delay(0) })
	if err := await(t, pinged, "the PING"); err != nil {
		t.Error(err)
	}
	if err := sem.Close(); err != nil {
		t.Error(err)
	}
}

// After a loss of state holders keep what they have, and nothing is granted beyond it.
func TestFlush(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(2))
		one, two := f.Semaphore(t), f.Semaphore(t)
		p, q := acquire(t, one), acquire(t, one)
		client := f.Client(t)
		if err := client.Set(t.Context(), "key", "lost", 0).Err(); err != nil {
			t.Fatal(err)
		}
		const script = "return 7"
		sha := client.ScriptLoad(t.Context(), script).Val()
		f.Flush(t)
		if got, err := client.Exists(t.Context(), "key").Result(); got != 0 || err != nil {
			t.Errorf("EXISTS: %d, %v", got, err)
		}
		if got, err := client.ScriptExists(t.Context(), sha).Result(); err != nil || got[0] {
			t.Errorf("SCRIPT EXISTS: %v, %v", got, err)
		}
		if _, err := two.Acquire(t.Context()); err == nil {
			t.Error("granted although two permits are held")
		}
		f.RequireHeld(t, 2)
		if !p.Held() || !q.Held() {
			t.Error("a permit was lost")
		}
		release(t, p, q)
		f.RequireNoLeak(t)
	})
}
