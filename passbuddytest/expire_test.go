package passbuddytest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/passbuddytest"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Expire ends the leases of one session: its holders notice, and others are granted the permits.
func TestExpire(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(2))
		one, two, three := f.Semaphore(t), f.Semaphore(t), f.Semaphore(t)
		p, q := acquire(t, one), acquire(t, two)
		granted := later(t, three)
		awaitWaiters(t, three, 1)
		began := time.Now()
		f.Expire(t, one)
		select {
		case <-p.Lost():
		default:
			t.Error("Lost is not closed when Expire returns")
		}
		if p.Held() {
			t.Error("held when Expire returns")
		}
		if !q.Held() {
			t.Error("another session's permit was lost")
		}
		if err := await(t, granted, "the waiter"); err != nil {
			t.Fatal(err)
		}
		f.RequireHeld(t, 2)
		if took := time.Since(began); isFake() && took > 5*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if lost := one.Stats().Lost; lost != 1 {
			t.Errorf("%d leases lost, want 1", lost)
		}
		release(t, p, q) // of a lost one does nothing
		f.Expire(t, three)
		f.RequireNoLeak(t)
		acquire(t, one) // all go on
		acquire(t, two)
		f.Expire(t, one)
		f.Expire(t, one) // nothing is left to expire
		f.RequireHeld(t, 1)
	})
}

// Nobody is granted a permit that its holder still counts as held.
func TestExpireIsNoticedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		one, two := f.Semaphore(t), f.Semaphore(t)
		p := acquire(t, one)
		granted := make(chan bool)
		go func() {
			for {
				if _, err := two.Acquire(t.Context()); err == nil {
					granted <- p.Held()
					return
				}
			}
		}()
		awaitWaiters(t, two, 1)
		f.Delay(50 * time.Millisecond) // a renewal takes a round trip, a push half of one
		f.Expire(t, one)
		if await(t, granted, "the waiter") {
			t.Error("two processes hold one permit")
		}
		f.Delay(0)
	})
}

// ExpireLeases ends those of everybody, of other clients too.
func TestExpireLeases(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(4))
		sem := f.Semaphore(t)
		acquire(t, sem)
		const node = "8b9a4f3e-7c1d-4a52-9f60-0d1c2b3a4f5e" // a UUID of the original's clients
		const permits = "passbuddy-semaphore"
		now := float64(time.Now().Add(time.Hour).UnixMilli())
		if err := addPermit(t, f, permits, node, now); err != nil {
			t.Fatal(err)
		}
		f.RequireHeld(t, 2)
		f.Expire(t, sem) // the other client's stays
		f.RequireHeld(t, 1)
		p := acquire(t, sem)
		f.RequireHeld(t, 2)
		began := time.Now()
		f.ExpireLeases(t)
		f.RequireHeld(t, 0)
		if took := time.Since(began); isFake() && took > 5*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if p.Held() {
			t.Error("held when ExpireLeases returns")
		}
		f.Exhaust(t)
		f.RequireHeld(t, 4)
		f.ExpireLeases(t)
		f.RequireHeld(t, 0)
	})
}

// An error of a Do tells that its lease ended.
func TestExpireEndsWork(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		sem := f.Semaphore(t)
		err := sem.NewPermit().Do(t.Context(), func(ctx context.Context) error {
			f.ExpireLeases(t)
			<-ctx.Done()
			return nil
		})
		if !errors.Is(err, semaphore.ErrLost) {
			t.Errorf("Do: %v, want ErrLost", err)
		}
		f.RequireNoLeak(t)
	})
}

// Leases that end while Redis is down are free at once; their holders notice when it is back.
func TestExpireWhileDown(t *testing.T) {
	inBoth(t, func(t *testing.T) {
		f := passbuddytest.New(t, short(1))
		p := acquire(t, f.Semaphore(t))
		f.Down(t)
		f.ExpireLeases(t)
		f.RequireHeld(t, 0)
		if !p.Held() {
			t.Error("the holder heard of it while Redis was down")
		}
		f.Up(t)
		if p.Held() {
			t.Error("held when Up returns")
		}
	})
}
