package engine

import (
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
						t.Fatalf("the waiter was not granted a permit %v after the freeze",
							time.Since(began))
					}
					time.Sleep(time.Millisecond)
					if waiting.IsDone() && awake.pg.live() > 3 {
						t.Fatal("the permit was granted while its backend lives")
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
				w.checkCounts(t)
				if snap := awake.s.state(t); snap.Held != 3 || snap.Quarantined != 0 {
					t.Errorf("the state is %+v, want 3 held and none in quarantine", snap)
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
				w.checkCounts(t)
				if got := awake.s.state(t).Held; got != 4 {
					t.Errorf("%d held, want 4", got)
				}
			})
		})
	}
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
			t.Fatalf("the permit was granted too early: %+v", snap)
		}
		if n := awake.asked.Load(); n < 3 {
			t.Errorf("the pool was asked only %d times to end backends", n)
		}
		for !waiting.IsDone() {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > 15100*time.Millisecond {
			t.Errorf("the permit was granted after %v, want at most a lease and the bound", took)
		}
		if second.IsDone() {
			t.Error("the second permit was granted too: no session had time to end its backend")
		}
		time.Sleep(behind)
		if !second.IsDone() {
			t.Error("the second permit was not granted")
		}
		w.checkCounts(t)

		// Redis still knows the backend: a session that reaches Postgres ends it.
		awake.deaf.Store(false)
		time.Sleep(maxEndPause)
		if n := awake.pg.live(); n != 2 {
			t.Errorf("%d backends live, want 2", n)
		}
		if n := len(w.quarantined()); n != 0 {
			t.Errorf("%d backends are still to be ended", n)
		}
		w.checkCounts(t)
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
			t.Fatalf("%d permits were granted while all backends live, want 1", len(got))
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
		w.checkCounts(t)
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
			t.Errorf("the permit was granted after %v, want at most 9s", took)
		}
		w.checkCounts(t)
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
				t.Errorf("request %d was not granted: %v", i, p.Err)
			}
		}
		if pg.live() != 2 {
			t.Errorf("%d backends live, want 2", pg.live())
		}
		w.checkCounts(t)
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
					w.checkCounts(t)
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
				w.checkCounts(t)
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
			t.Fatal("bug in the test: the pool was not asked to end a backend")
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
			t.Errorf("%d backends live and %d permits are counted, want 3 of each",
				pg.live(), snap.Held)
		}
		a.deaf.Store(false)
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if snap := a.s.state(t); snap.Held != 1 || pg.live() != 1 {
			t.Errorf("want one permit of a left: %d held, %d backends", snap.Held, pg.live())
		}
		w.checkCounts(t)
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
			t.Errorf("the permits were granted after %v, want without waiting for the bound", took)
		}
		time.Sleep(5 * time.Second)
		w.checkCounts(t)
	})
}
