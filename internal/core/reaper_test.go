package core

import (
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// covering is a session of two pools. The second has two permits that cover backends, the first has
// one, and one that covers none.
func covering(t *testing.T) (s *stage, first, second *pool) {
	t.Helper()
	s = start(t, Config{Capacity: 10})
	first, second = s.pool(), s.pool()
	first.gets(2)
	second.gets(2)
	s.RecordBackend(first.permits[0], "1 1 1")
	s.RecordBackend(second.permits[0], "2 2 1")
	s.RecordBackend(second.permits[1], "3 3 1")
	return s, first, second
}

// The core asks the pool that covers most backends to end those in quarantine. One attempt for a
// backend is under way at a time. If the backend does not end, the next attempt follows after a
// pause that doubles, up to a bound.
func TestBackendsInQuarantineAreEnded(t *testing.T) {
	s, _, second := covering(t)
	end := func() []Record {
		fx := Effects{}
		s.Pushed(s.now, message.Push{Kind: message.PushFence, IDs: []string{"a"}, Records: []string{"7 70"}})
		if fx = s.Take(); len(fx.End) > 0 && fx.Reaper != &second.Pool {
			t.Error("the core asks another pool than the one that covers most backends")
		}
		return fx.End
	}
	for pause := endPause; ; pause = min(2*pause, maxEndPause) {
		list := end()
		if len(list) != 1 || list[0] != (Record{ID: "a", Text: "7 70", Tag: "7 70"}) {
			t.Fatalf("asked to end %+v after a pause of %v", list, pause/2)
		}
		if again := end(); len(again) != 0 {
			t.Fatalf("asked to end %+v while an attempt is under way", again)
		}
		s.Ended(s.now, list, []bool{false})
		s.now += pause - 1
		if again := end(); len(again) != 0 {
			t.Fatalf("asked again before a pause of %v", pause)
		}
		s.now++
		if pause == maxEndPause {
			break
		}
	}
	s.renew(s.call()) // it is long since the last one
	s.Ended(s.now, end(), []bool{true})
	if got := s.batch().dropped(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the batch drops %q, want the permit whose backend is gone", got)
	}
	if len(s.ending) != 0 {
		t.Error("the core remembers a backend that is gone")
	}
}

// The answer to a call lists the whole quarantine. The session forgets a backend that has left it,
// unless an attempt to end it is under way.
func TestACallListsTheQuarantine(t *testing.T) {
	s, _, _ := covering(t)
	tell := func(quarantine ...string) []Record {
		s.seen = Effects{}
		s.replied(s.call(), message.Renewed{Quarantine: quarantine})
		return s.seen.End
	}
	list := tell("a", "7 70 1790000000000", "b", "8 80 1790000000000")
	if len(list) != 2 || list[0].Tag != "7 70" || list[1].Tag != "8 80" {
		t.Fatalf("asked to end %+v, want both backends", list)
	}
	if tell(); len(s.ending) != 2 {
		t.Error("the core forgets a backend while an attempt to end it is under way")
	}
	s.Ended(s.now, list, nil)
	if tell(); len(s.ending) != 0 {
		t.Error("the core remembers a backend that has left the quarantine")
	}
}

// One look is under way at a time, and only for the current state.
func TestOneLookIsUnderWayAtATime(t *testing.T) {
	s, _, second := covering(t)
	look := func(epoch string) []Record {
		s.Pushed(s.now, message.Push{
			Kind: message.PushLook, Epoch: epoch, Since: 9, IDs: []string{"a"}, Records: []string{"7 70 1 4"}})
		fx := s.Take()
		if len(fx.Look) > 0 && (fx.Reaper != &second.Pool || fx.LookEpoch != "e" || fx.LookSince != 9) {
			t.Errorf("pool %p looks, for the state %q since %d", fx.Reaper, fx.LookEpoch, fx.LookSince)
		}
		return fx.Look
	}
	if got := look("another"); len(got) != 0 {
		t.Errorf("the core looks for %+v on behalf of another state", got)
	}
	if got := look("e"); len(got) != 1 || got[0] != (Record{ID: "a", Text: "7 70 1 4", Tag: "7 70 1"}) {
		t.Errorf("the core looks for %+v, want the one backend", got)
	}
	if got := look("e"); len(got) != 0 {
		t.Errorf("the core looks for %+v beside another look", got)
	}
	s.Looked()
	if got := look("e"); len(got) != 1 {
		t.Error("the core looks for nothing after the first look")
	}
}

// A session that covers no backend has no connection to end others with, and a closed one begins
// nothing.
func TestWithoutAReaperNoBackendIsEnded(t *testing.T) {
	end := message.Push{Kind: message.PushFence, IDs: []string{"a"}, Records: []string{"7 70"}}
	look := message.Push{
		Kind: message.PushLook, Epoch: "e", IDs: []string{"a"}, Records: []string{"7 70 1 4"}}
	s := start(t, Config{})
	plain := s.acquire()
	s.RecordBackend(plain, "1 1 1") // a plain permit
	s.Pushed(s.now, end)
	s.Pushed(s.now, look)
	if fx := s.Take(); len(fx.End)+len(fx.Look) != 0 {
		t.Errorf("the effects are %+v, although no pool has a connection", fx)
	}
	s, _, _ = covering(t)
	s.Close(s.now)
	s.Pushed(s.now, end)
	s.Pushed(s.now, look)
	if fx := s.Take(); len(fx.End)+len(fx.Look) != 0 {
		t.Errorf("the effects are %+v after Close", fx)
	}
}

// Each new record of a permit has a higher number than the one before. ClearBackend returns no
// record if Redis knows of no backend, or has confirmed that there is none. It repeats its last
// record if Redis has not confirmed it.
func TestRecordsOfABackend(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	vacate := func(want string) {
		t.Helper()
		if got, ok := s.ClearBackend(p); got != want || !ok {
			t.Errorf("ClearBackend returns %q, %v; want %q", got, ok, want)
		}
	}
	cover := func(tag, want string) {
		t.Helper()
		if got, ok := s.RecordBackend(p, tag); got != want || !ok {
			t.Errorf("RecordBackend returns %q, %v; want %q", got, ok, want)
		}
	}
	vacate("")
	cover("7 70 1", "7 70 1 1")
	vacate("0 0 0 2")
	vacate("0 0 0 2")
	s.BackendCleared(p, "0 0 0 1") // of an earlier record
	vacate("0 0 0 2")
	s.BackendCleared(p, "0 0 0 2")
	vacate("")
	cover("8 80 1", "8 80 1 3")
	if got := s.call().X.Backends; !slices.Equal(got, []string{"8 80 1 3"}) {
		t.Errorf("a call names the backends %q, want the latest", got)
	}
	s.pass(ttl)
	if _, ok := s.RecordBackend(p, "9 90 1"); ok {
		t.Error("a backend is recorded for a lost permit")
	}
	if _, ok := s.ClearBackend(p); ok {
		t.Error("a lost permit may cover another connection")
	}
}

// A call names the backends of its permits, each at the place of its permit. Permits come in
// another order with each call.
func TestACallNamesBackendsByPermit(t *testing.T) {
	s, first, second := covering(t)
	want := map[string]string{first.permits[0].ID: "1 1 1 1", first.permits[1].ID: "",
		second.permits[0].ID: "2 2 1 1", second.permits[1].ID: "3 3 1 1"}
	for range 100 {
		k := s.call()
		if len(k.X.Permits) != 4 || len(k.X.Backends) != 4 {
			t.Fatalf("a call names %d permits and %d backends, want 4 and 4",
				len(k.X.Permits), len(k.X.Backends))
		}
		for i, id := range k.X.Permits {
			if k.X.Backends[i] != want[id] {
				t.Fatalf("the call says that %s covers %q, want %q", id, k.X.Backends[i], want[id])
			}
		}
		s.renew(k)
	}
	s = start(t, Config{})
	s.acquire()
	if k := s.call(); len(k.X.Backends) != 0 {
		t.Errorf("a call names the backends %q of a session that covers none", k.X.Backends)
	}
}

// The state is lost. A call has re-asserted a record that a newer one has replaced meanwhile. So
// another call must re-assert the newer one before the session accepts the new state.
func TestARecordThatACallMissedIsReasserted(t *testing.T) {
	s, first, _ := covering(t)
	k := s.call()
	s.RecordBackend(first.permits[0], "4 4 1")
	s.state = "another"
	s.seen = Effects{}
	if s.renew(k); s.Epoch() != "e" || !s.seen.Heartbeat {
		t.Errorf("after the first call: epoch %q, another call %v; want the old epoch and a call",
			s.Epoch(), s.seen.Heartbeat)
	}
	if s.renew(s.call()); s.Epoch() != "another" {
		t.Errorf("after the second call: epoch %q, want the new one", s.Epoch())
	}
}

// Redis does not know a permit whose backend is to be recorded. The permit is lost, and a call
// finds out whether others are lost as well.
func TestAPermitThatCannotBeRecordedIsLost(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	s.pass(time.Millisecond)
	s.seen = Effects{}
	s.NotHeld(s.now, p)
	if s.take(); p.State() != Lost || !s.seen.Heartbeat {
		t.Errorf("the permit is in state %d, a call is made: %v; want it lost, and a call",
			p.State(), s.seen.Heartbeat)
	}
	q := s.NewPermit()
	s.NotHeld(s.now, q) // not one that the core holds
	if q.State() != Fresh {
		t.Error("a permit that was never held becomes lost")
	}
}
