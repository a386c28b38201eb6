package engine

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/core"
)

const (
	// lookEvery is the constant LOOK of looks.lua.
	lookEvery = 200 * time.Millisecond
	longTTL   = 30 * time.Second
)

// kill ends a session as SIGKILL does. Postgres ends its backends at once.
func (f *fencer) kill() {
	f.s.link.SetCut(true)
	f.close(f.granted()...)
}

// looked returns two sessions that hold two of four permits each, and one that waits.
func looked(t *testing.T, w *world,
	cfg Config) (one, other *fencer, waiting *bubble.Pending[*Permit]) {
	t.Helper()
	cfg.Capacity, cfg.TTL, cfg.Patience = 4, longTTL, forever
	pg := &postgres{}
	one, other = w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
	one.open(2)
	other.open(2)
	waiting = w.join(Config{Capacity: 4, TTL: longTTL, Patience: forever}).later(t.Context())
	if waiting.IsDone() {
		t.Fatal("bug in the test: not at capacity")
	}
	w.checkCounts(t)
	return one, other, waiting
}

// A process is killed. Its permits are free as soon as its backends are gone, not only when their
// leases expire.
func TestAKilledHolderCostsNoLease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		victim, other, waiting := looked(t, w, Config{})
		victim.s.later(t.Context()) // it must not be granted the permit that it waits for
		second := other.s.later(t.Context())
		victim.s.link.SetCut(true)
		time.Sleep(2 * time.Second)
		if waiting.IsDone() {
			t.Fatal("a permit was granted while its backend lives")
		}
		began := time.Now()
		victim.kill()
		for !waiting.IsDone() || !second.IsDone() {
			if time.Since(began) > time.Second {
				t.Fatalf("the permits were not granted %v after the backends' end",
					time.Since(began))
			}
			time.Sleep(time.Millisecond)
		}
		t.Logf("granted %v after the backends' end", time.Since(began))
		if waiting.Err != nil || second.Err != nil {
			t.Errorf("the waiters were not granted: %v, %v", waiting.Err, second.Err)
		}
		if n := other.asked.Load(); n > 0 {
			t.Errorf("the pool was asked %d times to end backends, want never", n)
		}
		w.checkCounts(t)
		if snap := other.s.state(t); snap.Held != 4 || snap.Quarantined != 0 {
			t.Errorf("the state is %+v, want 4 held and none in quarantine", snap)
		}
	})
}

// One backend of a killed process is busy for longer than the other.
func TestBackendsOfAKilledHolderEndOneByOne(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		victim, other, waiting := looked(t, w, Config{})
		second := other.s.later(t.Context())
		victim.s.link.SetCut(true)
		victim.close(victim.granted()[0])
		time.Sleep(time.Second)
		if !waiting.IsDone() {
			t.Error("the first permit is not granted")
		}
		if second.IsDone() {
			t.Error("the second permit is granted while its backend lives")
		}
		victim.close(victim.granted()[1])
		time.Sleep(time.Second)
		if !second.IsDone() {
			t.Error("the second permit is not granted")
		}
		if got := w.logged("gone"); !slices.Equal(got, []string{"1 backend", "1 backend"}) {
			t.Errorf("logged: %q", got)
		}
		w.checkCounts(t)
	})
}

// A live session that has lost its subscription loses no permit, however long others wait. The
// looks for its backends are paced.
func TestASessionWithoutSubscriptionLosesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		deaf, other, waiting := looked(t, w, Config{})
		deaf.s.loseSubscription(t)
		const long = 2 * longTTL
		time.Sleep(long)
		synctest.Wait()
		if waiting.IsDone() {
			t.Error("one of its permits was granted to another")
		}
		for _, p := range deaf.granted() {
			if !p.Held() {
				t.Error("the session lost a lease")
			}
		}
		if n := deaf.Heard("lost"); n > 0 {
			t.Errorf("%d leases are lost, want none", n)
		}
		looks := other.looks.Load()
		if looks == 0 || looks > int32(long/lookEvery)+1 {
			t.Errorf("%d looks in %v, want one at most every %v", looks, long, lookEvery)
		}
		t.Logf("%d looks in %v", looks, long)
		w.checkCounts(t)
	})
}

// The session closes a connection and opens another under the same permit. Between the two, the
// recorded backend is gone, and the next backend lives before it is recorded.
func TestASessionWithoutSubscriptionReconnects(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		deaf, other, waiting := looked(t, w, Config{})
		deaf.s.loseSubscription(t)
		p := deaf.granted()[0]

		// It first records that the permit covers no backend: then no session can see its backend
		// gone.
		deaf.close(p)
		vacate := deaf.ClearBackend(p)
		if vacate == nil {
			t.Fatal("Redis has a recorded backend, and the session does not clear the record")
		}
		if err := vacate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if deaf.ClearBackend(p) != nil {
			t.Error("the session would clear the record again")
		}
		time.Sleep(5 * time.Second) // the connect takes long
		if waiting.IsDone() || !p.Held() {
			t.Fatal("the permit was granted to another session while a connection opens under it")
		}
		if err := deaf.connect(p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if waiting.IsDone() || !p.Held() {
			t.Fatal("the permit was granted to another session while it covers a backend")
		}

		// Another session sees its backend gone before it clears the record: it may not connect.
		deaf.close(p)
		time.Sleep(time.Second)
		if !waiting.IsDone() {
			t.Fatal("the backend is gone, and the permit was not granted to another session")
		}
		if err := deaf.ClearBackend(p)(t.Context()); !errors.Is(err, core.ErrLost) {
			t.Errorf("it may connect under another session's permit: %v", err)
		}
		if n := other.pg.live(); n != 3 {
			t.Errorf("%d backends, want 3", n)
		}
		time.Sleep(longTTL)
		w.checkCounts(t)
	})
}

// The request that clears a record is lost and repeated. A record of the former backend that
// arrives late changes nothing.
func TestClearingARecordIsOvertaken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		if f.ClearBackend(f.s.NewPermit()) == nil {
			t.Error("a permit that is not held can cover a connection")
		}
		f.s.link.SetCut(true)
		if err := f.ClearBackend(p)(t.Context()); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("clearing the record: %v, want ErrUnavailable", err)
		}
		f.s.link.SetCut(false)
		time.Sleep(5 * time.Second)
		f.end()
		f.open(1)
		p = f.granted()[0]
		stray := f.RecordBackend(p, "102 1 1")
		if err := f.ClearBackend(p)(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := stray(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.recorded(p); !strings.HasPrefix(got, "0 0 0 ") {
			t.Errorf("%q is recorded, want no backend", got)
		}
		time.Sleep(2 * time.Second) // a heartbeat
		if got := w.recorded(p); !strings.HasPrefix(got, "0 0 0 ") {
			t.Errorf("%q is recorded after a heartbeat, want no backend", got)
		}
		w.checkCounts(t)
	})
}

// A permit that covers no backend any more is free when its lease expires, because there is no
// backend to end.
func TestAPermitWithoutABackendIsNotQuarantined(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		sleeper, awake, waiting := frozen(t, w, Config{})
		_ = waiting
		sleeper.s.link.SetCut(false)
		p := sleeper.granted()[0]
		sleeper.close(p)
		if err := sleeper.ClearBackend(p)(t.Context()); err != nil {
			t.Fatal(err)
		}
		awake.deaf.Store(true)
		w.expire(t, awake.s, p)
		if !waiting.IsDone() {
			t.Error("the permit was not granted")
		}
		if snap := awake.s.state(t); snap.Quarantined != 0 {
			t.Errorf("the state is %+v, want none in quarantine", snap)
		}
	})
}

// No session looks for backends if no session waits, if all are subscribed, or if no backend is
// recorded.
func TestNobodyLooksInVain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		cfg := Config{Capacity: 4, TTL: longTTL, Patience: forever}
		a, b := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
		a.open(1)
		b.open(1)
		a.s.loseSubscription(t)
		time.Sleep(longTTL)
		if n := b.looks.Load(); n > 0 {
			t.Errorf("%d looks while no session waits, want none", n)
		}
	})
	inWorld(t, func(t *testing.T, w *world) {
		a, b, _ := looked(t, w, Config{})
		time.Sleep(longTTL)
		if n := a.looks.Load() + b.looks.Load(); n > 0 {
			t.Errorf("%d looks while all are subscribed, want none", n)
		}
	})
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, TTL: longTTL, Patience: forever}
		a, b := w.join(cfg), w.join(cfg)
		a.acquire(t)
		b.later(t.Context())
		a.link.SetCut(true)
		time.Sleep(2 * time.Second)
		fields, err := w.Redis.HKeys(keyBase + "meta")
		if err != nil || slices.Contains(fields, "look") {
			t.Errorf("meta has the fields %q, %v; want no look", fields, err)
		}
	})
}

// The pool that looks cannot reach Postgres. Nothing changes, and the permit is free when its lease
// expires.
func TestALookThatFailsChangesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		victim, other, waiting := looked(t, w, Config{})
		other.deaf.Store(true)
		victim.kill()
		time.Sleep(longTTL / 2)
		if waiting.IsDone() {
			t.Error("the permit was granted, though no session has seen the backend gone")
		}
		other.deaf.Store(false)
		time.Sleep(time.Second)
		if !waiting.IsDone() {
			t.Error("the permit was not granted after a look")
		}
		w.checkCounts(t)
	})
}
