package engine

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
)

func TestAFrozenHoldersBackendIsEndedBeforeItsPermitIsGranted(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 5 * time.Second} {
		t.Run(ttl.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				sleeper, awake, waiting := frozen(t, w, Config{TTL: ttl})
				began := time.Now()
				for !waiting.IsDone() {
					if time.Since(began) > ttl+time.Second {
						t.Fatalf("not granted %v after the freeze", time.Since(began))
					}
					time.Sleep(time.Millisecond)
					if waiting.IsDone() && awake.pg.live() > 3 {
						t.Fatal("granted while its backend lives")
					}
				}
				if waiting.Err != nil {
					t.Fatal(waiting.Err)
				}
				t.Logf("granted %v after the freeze", time.Since(began))
				// the second lease began a little later, when the join ended: the next heartbeat
				// finds it
				time.Sleep(ttl / 2)
				synctest.Wait()
				if n := awake.pg.live(); n != 2 {
					t.Errorf("%d backends live, want only those of the session that is awake", n)
				}
				w.reckoned(t)
				if snap := awake.s.state(t); snap.Held != 3 || snap.Quarantined != 0 {
					t.Errorf("%+v, want 3 held and none in quarantine", snap)
				}

				// The session wakes. Its permits stay lost, and it queues like any other session.
				sleeper.s.link.SetCut(false)
				time.Sleep(2 * ttl)
				for _, p := range sleeper.granted() {
					if p.Held() {
						t.Error("the woken session holds its lost permit again")
					}
				}
				sleeper.end()
				sleeper.open(1)
				time.Sleep(ttl)
				w.reckoned(t)
				if got := awake.s.state(t).Held; got != 4 {
					t.Errorf("%d held, want 4", got)
				}
			})
		})
	}
}

// Without recorded backends the engine keeps no state about backends.
func TestNothingIsKeptWithoutBackends(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1, Patience: forever}), w.join(Config{Capacity: 1,
			Patience: forever})
		p := a.pool(t)
		p.Ask(1)
		if p.Heard("granted") != 1 {
			t.Fatal("bug in the test: nothing granted")
		}
		waiting := b.later(t.Context())
		a.link.SetCut(true)
		time.Sleep(5100 * time.Millisecond)
		if !waiting.IsDone() || waiting.Err != nil {
			t.Errorf("a permit without a backend was not free when its lease expired: %v",
				waiting.Err)
		}
		for _, key := range w.Redis.Keys() {
			if strings.HasSuffix(key, ":backends") || strings.HasSuffix(key, ":quarantine") {
				t.Errorf("there is a key %s", key)
			}
		}
		if got := w.Redis.HGet(keyBase+"meta", "fence"); got != "" {
			t.Errorf("fence is %q", got)
		}
	})
}

// No session reaches Postgres. The permits stay in quarantine until the bound, and no longer.
func TestQuarantineIsBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, awake, waiting := frozen(t, w, Config{})
		awake.deaf.Store(true)
		second := awake.s.later(t.Context())
		began := time.Now()
		time.Sleep(14 * time.Second) // at least a lease, less a heartbeat, and the bound
		if snap := awake.s.state(t); waiting.IsDone() || snap.Held != 4 || snap.Quarantined != 2 {
			t.Fatalf("granted too early: %+v", snap)
		}
		if n := awake.asked.Load(); n < 3 {
			t.Errorf("asked only %d times to end backends", n)
		}
		for !waiting.IsDone() {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > 15100*time.Millisecond {
			t.Errorf("granted after %v", took)
		}
		if second.IsDone() {
			t.Error("the second permit was granted too: no session had time to end its backend")
		}
		time.Sleep(behind)
		if !second.IsDone() {
			t.Error("the second permit was not granted")
		}
		w.reckoned(t)

		// Redis still knows the backend: a session that reaches Postgres ends it.
		awake.deaf.Store(false)
		time.Sleep(maxEndPause)
		if n := awake.pg.live(); n != 2 {
			t.Errorf("%d backends live", n)
		}
		if n := len(w.quarantined()); n != 0 {
			t.Errorf("%d backends are still to be ended", n)
		}
		w.reckoned(t)
	})
}

const (
	// behind is how much later than the first permit the others leave the quarantine, plus a
	// margin.
	behind = 1100 * time.Millisecond
	// maxEndPause is the longest pause before a backend is ended again: core.maxEndPause.
	maxEndPause = time.Minute
)

// All permits are in quarantine, and no session has a connection. The first session that gets one
// ends all other backends.
func TestTheFirstToGetAConnectionEndsTheBackends(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		cfg := Config{Capacity: 3, Patience: forever}
		sleeper, newcomer := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
		sleeper.open(3)
		newcomer.Ask(3)
		sleeper.s.link.SetCut(true)
		began := time.Now()
		for newcomer.Heard("granted") == 0 {
			time.Sleep(time.Millisecond)
		}
		t.Logf("granted after %v", time.Since(began))
		got := newcomer.granted()
		if len(got) != 1 {
			t.Fatalf("%d granted, while all backends live", len(got))
		}
		if err := newcomer.connect(got[0]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if pg.live() != 1 {
			t.Errorf("%d backends live, want its own", pg.live())
		}
		newcomer.Ask(2)
		newcomer.Ask(2)
		time.Sleep(time.Second)
		w.reckoned(t)
		if snap := newcomer.s.state(t); snap.Quarantined != 0 {
			t.Errorf("%+v, want none in quarantine", snap)
		}
	})
}

// A lost push delays the request only until the next heartbeat.
func TestHeartbeatsAskAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, awake, waiting := frozen(t, w, Config{})
		began := time.Now()
		awake.deaf.Store(true)
		for awake.asked.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond)
		awake.deaf.Store(false) // but that request was in vain
		for !waiting.IsDone() {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > 9*time.Second {
			t.Errorf("granted after %v", took)
		}
		w.reckoned(t)
	})
}

// The last session that answers ends the backends of all others.
func TestThreeOfFourFreeze(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		cfg := Config{Capacity: 8, Patience: forever}
		var fleet []*fencer
		for range 4 {
			f := w.join(cfg).fencer(t, pg)
			f.open(2)
			fleet = append(fleet, f)
		}
		var waiting []*bubble.Pending[*Permit]
		for range 6 {
			waiting = append(waiting, fleet[3].s.later(t.Context()))
		}
		for _, f := range fleet[:3] {
			f.s.link.SetCut(true)
		}
		time.Sleep(6 * time.Second)
		for i, p := range waiting {
			if !p.IsDone() || p.Err != nil {
				t.Errorf("%d not granted: %v", i, p.Err)
			}
		}
		if pg.live() != 2 {
			t.Errorf("%d backends live", pg.live())
		}
		w.reckoned(t)
	})
}

// Redis loses its state while all sessions are awake. Their next heartbeats record the backends
// again. Then one session freezes.
func TestBackendsSurviveStateLoss(t *testing.T) {
	for name, lose := range map[string]func(w *world){
		"all":        func(w *world) { w.Redis.FlushAll() },
		"backends":   func(w *world) { w.Redis.Del(keyBase + "backends") },
		"meta":       func(w *world) { w.Redis.Del(keyBase + "meta") },
		"permits":    func(w *world) { w.Redis.Del(base) },
		"meta after": nil,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 4, Patience: forever}
				pg := &postgres{}
				sleeper, awake := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
				sleeper.open(2)
				awake.open(2)
				if lose != nil {
					lose(w)
					time.Sleep(7 * time.Second)
					w.reckoned(t)
					if n := len(w.recordedPermits()); n != 4 {
						t.Errorf("%d backends recorded, want 4", n)
					}
				}
				if err := awake.connect(awake.granted()[0]); err != nil { // reconnects
					t.Fatal(err)
				}
				waiting := awake.s.later(t.Context())
				sleeper.s.link.SetCut(true)
				if lose == nil {
					w.Redis.Del(keyBase + "meta")
				}
				for !waiting.IsDone() {
					time.Sleep(time.Millisecond)
					if waiting.IsDone() && pg.live() > 4 {
						t.Fatalf("granted while %d backends live", pg.live())
					}
				}
				time.Sleep(5 * time.Second)
				w.reckoned(t)
			})
		})
	}
}

// A session closes while it ends other backends and has a connection that does not end in time.
// Close does not wait for the backends, and the connection's permit stays counted.
func TestCloseWhileEnding(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 4, Patience: forever}
		pg := &postgres{}
		a, b := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
		a.open(2)
		b.open(1)
		b.stuck.Store(true)
		a.deaf.Store(true)
		w.expire(t, b.s, a.granted()[0])
		time.Sleep(2 * time.Second)
		if b.asked.Load() == 0 {
			t.Fatal("bug in the test: not asked")
		}
		began := time.Now()
		if err := b.s.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > closeTimeout+time.Second {
			t.Errorf("Close took %v", took)
		}
		synctest.Wait()
		if snap := a.s.state(t); snap.Held != 3 || pg.live() != 3 {
			t.Errorf("%d backends live, %d permits are counted, want 3", pg.live(), snap.Held)
		}
		a.deaf.Store(false)
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if snap := a.s.state(t); snap.Held != 1 || pg.live() != 1 {
			t.Errorf("want one permit of a left: %d held, %d backends", snap.Held, pg.live())
		}
		w.reckoned(t)
	})
}

// All sessions lose Redis for longer than a lease, end their connections and report that. No
// backend is left to end.
func TestPermitsGivenBackDuringAnOutageDoNotWaitForTheBound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		cfg := Config{Capacity: 2, Patience: forever}
		a, b := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
		a.open(1)
		b.open(1)
		for _, f := range []*fencer{a, b} {
			f.s.link.SetCut(true)
		}
		time.Sleep(6 * time.Second)
		for _, f := range []*fencer{a, b} {
			if f.Heard("lost") != 1 {
				t.Fatal("bug in the test: nothing lost")
			}
			f.end()
		}
		time.Sleep(20 * time.Second)
		for _, f := range []*fencer{a, b} {
			f.s.link.SetCut(false)
		}
		began := time.Now()
		a.open(1)
		b.open(1)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
		time.Sleep(5 * time.Second)
		w.reckoned(t)
	})
}

// The scripts do not count the minimum of a frozen session on top of its permits in quarantine.
// They count the whole minimum again once the session wakes.
func TestMinimumOfAFrozenSession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		a := w.join(Config{Capacity: 4, Min: 2, Patience: forever}).fencer(t, pg)
		b := w.join(Config{Capacity: 4, Min: 1, Patience: forever}).fencer(t, pg)
		a.open(2)
		b.open(2)
		b.s.later(t.Context())
		b.s.later(t.Context())
		a.s.link.SetCut(true)
		b.deaf.Store(true)
		time.Sleep(5500 * time.Millisecond)
		reserve := func() string { return w.Redis.HGet(keyBase+"meta", "reserve") }
		if snap := b.s.state(t); snap.Quarantined != 2 {
			t.Fatalf("bug in the test: %+v", snap)
		}
		time.Sleep(2 * time.Second)
		if got := reserve(); got != "0" && got != "" {
			t.Errorf("reserved %s: the frozen session's minimum is counted on top of its permits",
				got)
		}
		w.reckoned(t)
		a.s.link.SetCut(false)
		time.Sleep(2 * time.Second)
		a.end()
		time.Sleep(4 * time.Second)
		w.reckoned(t)
		if free := w.Redis.HGet(keyBase+"reserves", "free "+a.s.name); free != "2" {
			t.Errorf("a lacks %s of its minimum, want 2", free)
		}
	})
}

// Plain permits cover no backend. They are free when their leases expire, even where pools record
// backends.
func TestPlainPermitsAreNotQuarantined(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 2, Patience: forever}
		f := w.join(cfg).fencer(t, &postgres{})
		f.open(1)
		a := w.join(cfg)
		a.acquire(t)
		waiting := f.s.later(t.Context())
		a.link.SetCut(true)
		time.Sleep(5100 * time.Millisecond)
		if !waiting.IsDone() || waiting.Err != nil {
			t.Error("not granted when the lease of a plain permit expired")
		}
		if n := f.asked.Load(); n != 0 {
			t.Errorf("asked %d times", n)
		}
		w.reckoned(t)
	})
}

// Once no backend is recorded any more, the scripts stop looking for backends.
func TestTheFlagGoesWithTheLastBackend(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(2)
		flag := func() string { return w.Redis.HGet(keyBase+"meta", "fence") }
		time.Sleep(3 * time.Second)
		if flag() == "" {
			t.Fatal("bug in the test: no flag")
		}
		f.end()
		time.Sleep(3 * time.Second)
		if flag() != "" {
			t.Error("the flag is still there")
		}
		w.reckoned(t)
	})
}

// A holder may not know of its loss: its host slept, and its clock with it.
func TestWhatIsInQuarantineIsNotRenewed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 4, Min: 2}).fencer(t, &postgres{})
		f.open(2)
		f.deaf.Store(true)
		p, kept := f.granted()[0], f.granted()[1]
		w.expire(t, f.s, p)
		w.reckoned(t)
		time.Sleep(4 * time.Second)
		if p.Held() || f.Heard("lost") != 1 {
			t.Error("the heartbeat renewed a permit in quarantine")
		}
		if snap := f.s.state(t); snap.Quarantined != 1 || snap.Held != 2 || !kept.Held() {
			t.Errorf("%+v, kept held: %v; want 2 held and 1 in quarantine", snap, kept.Held())
		}
		w.reckoned(t)
		for range 2 {
			if free := w.Redis.HGet(keyBase+"reserves", "free "+f.s.name); free != "1" {
				t.Errorf("its minimum lacks %s, want 1", free)
			}
			w.Redis.Del(keyBase + "reserves") // so a heartbeat counts them again
			time.Sleep(2 * time.Second)
		}
		f.Give(p) // the session has ended the connection itself
		w.reckoned(t)
		if snap := f.s.state(t); snap.Quarantined != 0 || snap.Held != 1 {
			t.Errorf("%+v, want 1 held and none in quarantine", snap)
		}
	})
}

// A permit that leaves the quarantine is subtracted from the counts only once.
func TestQuarantineCountsForNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 4}).fencer(t, &postgres{})
		f.open(3)
		w.expire(t, f.s, f.granted()[0])
		time.Sleep(10 * time.Millisecond) // too short for a heartbeat, which would count again
		if snap := f.s.state(t); snap.Quarantined != 0 || snap.Held != 2 {
			t.Errorf("%+v, want 2 held and none in quarantine", snap)
		}
		w.reckoned(t)
	})
}

// Redis has lost the field that says that backends are recorded, but not the records.
func TestQuarantineWithoutMeta(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		f.deaf.Store(true)
		w.Redis.Del(keyBase + "meta")
		w.expire(t, f.s, f.granted()[0])
		if snap := f.s.state(t); snap.Quarantined != 1 {
			t.Errorf("%+v, want 1 in quarantine", snap)
		}
	})
}
