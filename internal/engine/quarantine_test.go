package engine

import (
	"slices"
	"strings"
	"testing"
	"time"
)

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
				t.Errorf("Redis has the key %s, want none about backends", key)
			}
		}
		if got := w.Redis.HGet(keyBase+"meta", "fence"); got != "" {
			t.Errorf("meta has the field fence %q, want none", got)
		}
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
			t.Fatalf("bug in the test: the state is %+v, want 2 in quarantine", snap)
		}
		if got := w.logged("quarantined"); !slices.Equal(got, []string{"2 permits"}) {
			t.Errorf("logged: %q", got)
		}
		time.Sleep(2 * time.Second)
		if got := reserve(); got != "0" && got != "" {
			t.Errorf("reserved %s: the frozen session's minimum is counted on top of its permits",
				got)
		}
		w.checkCounts(t)
		a.s.link.SetCut(false)
		time.Sleep(2 * time.Second)
		a.end()
		time.Sleep(4 * time.Second)
		w.checkCounts(t)
		if free := w.Redis.HGet(keyBase+"reserves", "free "+a.s.name); free != "2" {
			t.Errorf("session a lacks %s of its minimum, want 2", free)
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
			t.Error("the permit was not granted when the lease of a plain permit expired")
		}
		if n := f.asked.Load(); n != 0 {
			t.Errorf("the pool was asked %d times to end backends, want never", n)
		}
		w.checkCounts(t)
	})
}

// Once no backend is recorded any more, the scripts stop looking for backends.
func TestTheFlagEndsWithTheLastBackend(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(2)
		flag := func() string { return w.Redis.HGet(keyBase+"meta", "fence") }
		time.Sleep(3 * time.Second)
		if flag() == "" {
			t.Fatal("bug in the test: meta has no field fence")
		}
		f.end()
		time.Sleep(3 * time.Second)
		if flag() != "" {
			t.Error("meta still has the field fence")
		}
		w.checkCounts(t)
	})
}

// A holder may not know of its loss: its host slept, and its clock with it.
func TestQuarantinedPermitsAreNotRenewed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 4, Min: 2}).fencer(t, &postgres{})
		f.open(2)
		f.deaf.Store(true)
		p, kept := f.granted()[0], f.granted()[1]
		w.expire(t, f.s, p)
		w.checkCounts(t)
		time.Sleep(4 * time.Second)
		if p.Held() || f.Heard("lost") != 1 {
			t.Error("the heartbeat renewed a permit in quarantine, or the pool was not told once of the loss")
		}
		if snap := f.s.state(t); snap.Quarantined != 1 || snap.Held != 2 || !kept.Held() {
			t.Errorf("the state is %+v, the other permit is held: %v; want 2 held and 1 in quarantine", snap, kept.Held())
		}
		w.checkCounts(t)
		for range 2 {
			if free := w.Redis.HGet(keyBase+"reserves", "free "+f.s.name); free != "1" {
				t.Errorf("the session's minimum lacks %s, want 1", free)
			}
			w.Redis.Del(keyBase + "reserves") // so a heartbeat counts them again
			time.Sleep(2 * time.Second)
		}
		f.Give(p) // the session has ended the connection itself
		w.checkCounts(t)
		if snap := f.s.state(t); snap.Quarantined != 0 || snap.Held != 1 {
			t.Errorf("the state is %+v, want 1 held and none in quarantine", snap)
		}
	})
}

// A permit that leaves the quarantine is subtracted from the counts only once.
func TestAnEndedQuarantineIsSubtractedOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 4}).fencer(t, &postgres{})
		f.open(3)
		w.expire(t, f.s, f.granted()[0])
		time.Sleep(10 * time.Millisecond) // too short for a heartbeat, which would count again
		if snap := f.s.state(t); snap.Quarantined != 0 || snap.Held != 2 {
			t.Errorf("the state is %+v, want 2 held and none in quarantine", snap)
		}
		w.checkCounts(t)
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
			t.Errorf("the state is %+v, want 1 in quarantine", snap)
		}
	})
}
