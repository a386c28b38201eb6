package semaphore

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFrozenHoldersBackendIsEndedBeforeItsPermitIsGranted(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 5 * time.Second} {
		t.Run(ttl.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				sleeper, awake, waiting := frozen(t, w, Config{TTL: ttl})
				began := time.Now()
				for !waiting.isDone() {
					if time.Since(began) > ttl+time.Second {
						t.Fatalf("not granted %v after the freeze", time.Since(began))
					}
					time.Sleep(time.Millisecond)
					if waiting.isDone() && awake.live() > 3 {
						t.Fatal("granted while its backend lives")
					}
				}
				if waiting.err != nil {
					t.Fatal(waiting.err)
				}
				t.Logf("granted %v after the freeze", time.Since(began))
				time.Sleep(ttl / 2) // the second lease began when the joining was over, a little later: the next heartbeat finds it
				synctest.Wait()
				if n := awake.live(); n != 2 {
					t.Errorf("%d backends live, want those of who is awake", n)
				}
				w.reckoned(t)
				if snap := awake.s.snapshot(t); snap.Held != 3 || snap.Fencing != 0 {
					t.Errorf("%+v", snap)
				}

				// It wakes: lost is lost, and it queues like anyone else.
				sleeper.s.link.setCut(false)
				time.Sleep(2 * ttl)
				for _, p := range sleeper.granted() {
					if p.Held() {
						t.Error("held again")
					}
				}
				sleeper.end()
				sleeper.open(1)
				time.Sleep(ttl)
				w.reckoned(t)
				if got := awake.s.snapshot(t).Held; got != 4 {
					t.Errorf("%d held, want 4", got)
				}
			})
		})
	}
}

// The engine asks nothing of a semaphore that nobody fences.
func TestNothingIsKeptWithoutBackends(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1, MaxAttempts: -1}), w.join(Config{Capacity: 1, MaxAttempts: -1})
		pool := a.pool(t)
		pool.share.Ask(1)
		if pool.heard("granted") != 1 {
			t.Fatal("bug in the test: nothing granted")
		}
		waiting := b.later(t.Context())
		a.link.setCut(true)
		time.Sleep(5100 * time.Millisecond)
		if !waiting.isDone() || waiting.err != nil {
			t.Errorf("a lease without a backend did not end with itself: %v", waiting.err)
		}
		for _, key := range w.redis.Keys() {
			if strings.HasSuffix(key, ":backends") || strings.HasSuffix(key, ":quarantine") {
				t.Errorf("there is a key %s", key)
			}
		}
		if got := w.redis.HGet("{passbuddy-semaphore}:meta", "fence"); got != "" {
			t.Errorf("fence is %q", got)
		}
	})
}

// Nobody gets through to Postgres: the cap is kept for the bound, and no longer.
func TestQuarantineIsBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, awake, waiting := frozen(t, w, Config{})
		awake.deaf.Store(true)
		second := awake.s.later(t.Context())
		began := time.Now()
		time.Sleep(14 * time.Second) // at the least, a lease less a heartbeat and the bound
		if snap := awake.s.snapshot(t); waiting.isDone() || snap.Held != 4 || snap.Fencing != 2 {
			t.Fatalf("granted too early: %+v", snap)
		}
		if n := awake.asked.Load(); n < 3 {
			t.Errorf("asked %d times only", n)
		}
		for !waiting.isDone() {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > 15100*time.Millisecond {
			t.Errorf("granted after %v", took)
		}
		if second.isDone() {
			t.Error("the second, too: nobody had time to end its backend")
		}
		time.Sleep(behind)
		if !second.isDone() {
			t.Error("the second was not granted")
		}
		w.reckoned(t)

		// It is not forgotten: who gets through ends it.
		awake.deaf.Store(false)
		time.Sleep(endAgainMost)
		if len(*awake.pg) != 2 {
			t.Errorf("%d backends live", len(*awake.pg))
		}
		if n := len(must(w.redis.HKeys("{passbuddy-semaphore}:quarantine"))); n != 0 {
			t.Errorf("%d still asked for", n)
		}
		w.reckoned(t)
	})
}

// behind is how much later than the first the others in quarantine are free, and some.
const behind = 1100 * time.Millisecond

// All permits are in quarantine, and nobody has a connection: the first who gets one ends all other backends.
func TestTheFirstToGetAConnectionEndsTheBackends(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		cfg := Config{Capacity: 3, MaxAttempts: -1}
		sleeper, newcomer := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
		sleeper.open(3)
		newcomer.share.Ask(3)
		sleeper.s.link.setCut(true)
		began := time.Now()
		for newcomer.heard("granted") == 0 {
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
		newcomer.share.Ask(2)
		newcomer.share.Ask(2)
		time.Sleep(time.Second)
		w.reckoned(t)
		if snap := newcomer.s.snapshot(t); snap.Fencing != 0 {
			t.Errorf("%+v", snap)
		}
	})
}

// A push lost costs no more than until the next heartbeat.
func TestHeartbeatsAskAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, awake, waiting := frozen(t, w, Config{})
		began := time.Now()
		awake.deaf.Store(true)
		for awake.asked.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond)
		awake.deaf.Store(false) // but that one was in vain
		for !waiting.isDone() {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > 9*time.Second {
			t.Errorf("granted after %v", took)
		}
		w.reckoned(t)
	})
}

// The last who can be asked is the one who looks.
func TestThreeOfFourFreeze(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		cfg := Config{Capacity: 8, MaxAttempts: -1}
		var fleet []*fencer
		for range 4 {
			f := w.join(cfg).fencer(t, pg)
			f.open(2)
			fleet = append(fleet, f)
		}
		var waiting []*pending
		for range 6 {
			waiting = append(waiting, fleet[3].s.later(t.Context()))
		}
		for _, f := range fleet[:3] {
			f.s.link.setCut(true)
		}
		time.Sleep(6 * time.Second)
		for i, p := range waiting {
			if !p.isDone() || p.err != nil {
				t.Errorf("%d not granted: %v", i, p.err)
			}
		}
		if pg.live() != 2 {
			t.Errorf("%d backends live", pg.live())
		}
		w.reckoned(t)
	})
}

// State lost while all are awake: the next heartbeats say again what is covered. Then one freezes.
func TestBackendsSurviveStateLoss(t *testing.T) {
	const hash = "{passbuddy-semaphore}:"
	for name, lose := range map[string]func(w *world){
		"all":        func(w *world) { w.redis.FlushAll() },
		"backends":   func(w *world) { w.redis.Del(hash + "backends") },
		"meta":       func(w *world) { w.redis.Del(hash + "meta") },
		"permits":    func(w *world) { w.redis.Del("passbuddy-semaphore") },
		"meta after": nil,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 4, MaxAttempts: -1}
				pg := &postgres{}
				sleeper, awake := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
				sleeper.open(2)
				awake.open(2)
				if lose != nil {
					lose(w)
					time.Sleep(7 * time.Second)
					w.reckoned(t)
					if n := len(must(w.redis.HKeys(hash + "backends"))); n != 4 {
						t.Errorf("%d backends recorded, want 4", n)
					}
				}
				if err := awake.connect(awake.granted()[0]); err != nil { // reconnects
					t.Fatal(err)
				}
				waiting := awake.s.later(t.Context())
				sleeper.s.link.setCut(true)
				if lose == nil {
					w.redis.Del(hash + "meta")
				}
				for !waiting.isDone() {
					time.Sleep(time.Millisecond)
					if waiting.isDone() && pg.live() > 4 {
						t.Fatalf("granted while %d backends live", pg.live())
					}
				}
				time.Sleep(5 * time.Second)
				w.reckoned(t)
			})
		})
	}
}

// The session ends while it ends backends, and while it has a connection that does not end in time: nobody waits for the one, and the permit of
// the other stays counted.
func TestCloseWhileEnding(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 4, MaxAttempts: -1}
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
		if snap := a.s.snapshot(t); snap.Held != 3 || pg.live() != 3 {
			t.Errorf("%d backends live, %d permits are counted, want 3", pg.live(), snap.Held)
		}
		a.deaf.Store(false)
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if snap := a.s.snapshot(t); snap.Held != 1 || pg.live() != 1 {
			t.Errorf("a has one left: %d held, %d backends", snap.Held, pg.live())
		}
		w.reckoned(t)
	})
}

// All lose Redis for longer than a lease, end their connections and say so. Nobody then has to end anything.
func TestPermitsGivenBackDuringAnOutageDoNotWaitForTheBound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		cfg := Config{Capacity: 2, MaxAttempts: -1}
		a, b := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
		a.open(1)
		b.open(1)
		for _, f := range []*fencer{a, b} {
			f.s.link.setCut(true)
		}
		time.Sleep(6 * time.Second)
		for _, f := range []*fencer{a, b} {
			if f.heard("lost") != 1 {
				t.Fatal("bug in the test: nothing lost")
			}
			f.end()
		}
		time.Sleep(20 * time.Second)
		for _, f := range []*fencer{a, b} {
			f.s.link.setCut(false)
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

// The minimum of a frozen session is not counted beside its permits in quarantine, and is whole again when it wakes.
func TestMinimumOfAFrozenSession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pg := &postgres{}
		a := w.join(Config{Capacity: 4, Min: 2, MaxAttempts: -1}).fencer(t, pg)
		b := w.join(Config{Capacity: 4, Min: 1, MaxAttempts: -1}).fencer(t, pg)
		a.open(2)
		b.open(2)
		b.s.later(t.Context())
		b.s.later(t.Context())
		a.s.link.setCut(true)
		b.deaf.Store(true)
		time.Sleep(5500 * time.Millisecond)
		reserve := func() string { return w.redis.HGet("{passbuddy-semaphore}:meta", "reserve") }
		if snap := b.s.snapshot(t); snap.Fencing != 2 {
			t.Fatalf("bug in the test: %+v", snap)
		}
		time.Sleep(2 * time.Second)
		if got := reserve(); got != "0" && got != "" {
			t.Errorf("reserved %s: the frozen one's minimum is kept beside its permits", got)
		}
		w.reckoned(t)
		a.s.link.setCut(false)
		time.Sleep(2 * time.Second)
		a.end()
		time.Sleep(4 * time.Second)
		w.reckoned(t)
		if free := w.redis.HGet("{passbuddy-semaphore}:reserves", "free "+a.s.identity.session); free != "2" {
			t.Errorf("a lacks %s of its minimum, want 2", free)
		}
	})
}

// Plain permits cover nothing: their leases end as ever, in a fenced semaphore too.
func TestPlainPermitsAreNotQuarantined(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 2, MaxAttempts: -1}
		f := w.join(cfg).fencer(t, &postgres{})
		f.open(1)
		a := w.join(cfg)
		a.acquire(t)
		waiting := f.s.later(t.Context())
		a.link.setCut(true)
		time.Sleep(5100 * time.Millisecond)
		if !waiting.isDone() || waiting.err != nil {
			t.Error("not granted when the lease of a plain permit expired")
		}
		if n := f.asked.Load(); n != 0 {
			t.Errorf("asked %d times", n)
		}
		w.reckoned(t)
	})
}

// Once nothing is fenced any more, nothing is looked up any more.
func TestTheFlagGoesWithTheLastBackend(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(2)
		flag := func() string { return w.redis.HGet("{passbuddy-semaphore}:meta", "fence") }
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

// A holder can live and not know it: its host slept, and its clock with it.
func TestWhatIsInQuarantineIsNotRenewed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 4, Min: 2}).fencer(t, &postgres{})
		f.open(2)
		f.deaf.Store(true)
		p, kept := f.granted()[0], f.granted()[1]
		w.expire(t, f.s, p)
		w.reckoned(t)
		time.Sleep(4 * time.Second)
		if p.Held() || f.heard("lost") != 1 {
			t.Error("it has its permit back")
		}
		if snap := f.s.snapshot(t); snap.Fencing != 1 || snap.Held != 2 || !kept.Held() {
			t.Errorf("%+v", snap)
		}
		w.reckoned(t)
		for range 2 {
			if free := w.redis.HGet("{passbuddy-semaphore}:reserves", "free "+f.s.identity.session); free != "1" {
				t.Errorf("its minimum lacks %s, want 1", free)
			}
			w.redis.Del("{passbuddy-semaphore}:reserves") // and counted anew
			time.Sleep(2 * time.Second)
		}
		f.share.Give(p) // it has ended the connection itself
		w.reckoned(t)
		if snap := f.s.snapshot(t); snap.Fencing != 0 || snap.Held != 1 {
			t.Errorf("%+v", snap)
		}
	})
}

// What leaves the quarantine is not counted out once more.
func TestQuarantineCountsForNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 4}).fencer(t, &postgres{})
		f.open(3)
		w.expire(t, f.s, f.granted()[0])
		time.Sleep(10 * time.Millisecond) // no heartbeat, which would count anew
		if snap := f.s.snapshot(t); snap.Fencing != 0 || snap.Held != 2 {
			t.Errorf("%+v", snap)
		}
		w.reckoned(t)
	})
}

// Redis has lost what says that there are backends, but not the backends.
func TestQuarantineWithoutMeta(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		f.deaf.Store(true)
		w.redis.Del("{passbuddy-semaphore}:meta")
		w.expire(t, f.s, f.granted()[0])
		if snap := f.s.snapshot(t); snap.Fencing != 1 {
			t.Errorf("%+v", snap)
		}
	})
}
