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

// The pool that covers most backends is asked to end those in quarantine. A backend is ended once
// at a time; one that does not end is tried again after a pause that doubles, up to a bound.
func TestBackendsInQuarantineAreEnded(t *testing.T) {
	s, _, second := covering(t)
	end := func() []Record {
		fx := Effects{}
		s.Pushed(s.now, message.Push{Kind: message.PushFence, IDs: []string{"a"}, Records: []string{"7 70"}})
		if fx = s.Take(); len(fx.End) > 0 && fx.Reaper != &second.Pool {
			t.Error("another pool is asked than the one that covers most")
		}
		return fx.End
	}
	for pause := endPause; ; pause = min(2*pause, maxEndPause) {
		list := end()
		if len(list) != 1 || list[0] != (Record{ID: "a", Text: "7 70", Tag: "7 70"}) {
			t.Fatalf("asked to end %+v after a pause of %v", list, pause/2)
		}
		if again := end(); len(again) != 0 {
			t.Fatalf("asked to end %+v twice at a time", again)
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
		t.Errorf("dropped %q, want what is gone", got)
	}
	if len(s.ending) != 0 {
		t.Error("what is gone is remembered")
	}
}

// A call tells the whole quarantine. The session forgets a backend that is not in it any more,
// unless its end is under way.
func TestACallTellsTheQuarantine(t *testing.T) {
	s, _, _ := covering(t)
	tell := func(quarantine ...string) []Record {
		s.seen = Effects{}
		s.replied(s.call(), message.Renewed{Quarantine: quarantine})
		return s.seen.End
	}
	list := tell("a", "7 70 1790000000000", "b", "8 80 1790000000000")
	if len(list) != 2 || list[0].Tag != "7 70" || list[1].Tag != "8 80" {
		t.Fatalf("asked to end %+v", list)
	}
	if tell(); len(s.ending) != 2 {
		t.Error("what is under way is forgotten")
	}
	s.Ended(s.now, list, nil)
	if tell(); len(s.ending) != 0 {
		t.Error("what is not in quarantine any more is remembered")
	}
}

// A look is under way, of the state that asked for it, and one at a time.
func TestALookIsOneAtATime(t *testing.T) {
	s, _, second := covering(t)
	look := func(epoch string) []Record {
		s.Pushed(s.now, message.Push{
			Kind: message.PushLook, Epoch: epoch, IDs: []string{"a"}, Records: []string{"7 70 1 4"}})
		fx := s.Take()
		if len(fx.Look) > 0 && (fx.Reaper != &second.Pool || fx.LookEpoch != "e") {
			t.Errorf("pool %p looks, in the state %q", fx.Reaper, fx.LookEpoch)
		}
		return fx.Look
	}
	if got := look("another"); len(got) != 0 {
		t.Errorf("looks for %+v in a state that is not there", got)
	}
	if got := look("e"); len(got) != 1 || got[0] != (Record{ID: "a", Text: "7 70 1 4", Tag: "7 70 1"}) {
		t.Errorf("looks for %+v", got)
	}
	if got := look("e"); len(got) != 0 {
		t.Errorf("looks for %+v beside another look", got)
	}
	s.Looked()
	if got := look("e"); len(got) != 1 {
		t.Error("looks no more after the first look")
	}
}

// A session that covers no backend has no connection to end others by, and one that is closed
// begins nothing.
func TestNoReaperNoEnd(t *testing.T) {
	end := message.Push{Kind: message.PushFence, IDs: []string{"a"}, Records: []string{"7 70"}}
	look := message.Push{
		Kind: message.PushLook, Epoch: "e", IDs: []string{"a"}, Records: []string{"7 70 1 4"}}
	s := start(t, Config{})
	plain := s.acquire()
	s.RecordBackend(plain, "1 1 1") // of no pool
	s.Pushed(s.now, end)
	s.Pushed(s.now, look)
	if fx := s.Take(); len(fx.End)+len(fx.Look) != 0 {
		t.Errorf("%+v, although no pool can", fx)
	}
	s, _, _ = covering(t)
	s.Close(s.now)
	s.Pushed(s.now, end)
	s.Pushed(s.now, look)
	if fx := s.Take(); len(fx.End)+len(fx.Look) != 0 {
		t.Errorf("%+v after Close", fx)
	}
}

// Records of one permit carry a number that grows with what they say. ClearBackend says nothing where
// Redis knows of no backend, the same again where the last record failed, and nothing once Redis
// has confirmed it.
func TestRecordsOfABackend(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	vacate := func(want string) {
		t.Helper()
		if got, ok := s.ClearBackend(p); got != want || !ok {
			t.Errorf("to be recorded: %q, %v; want %q", got, ok, want)
		}
	}
	cover := func(tag, want string) {
		t.Helper()
		if got, ok := s.RecordBackend(p, tag); got != want || !ok {
			t.Errorf("to be recorded: %q, %v; want %q", got, ok, want)
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
		t.Errorf("a call says %q", got)
	}
	s.pass(ttl)
	if _, ok := s.RecordBackend(p, "9 90 1"); ok {
		t.Error("a permit that is lost covers a backend")
	}
	if _, ok := s.ClearBackend(p); ok {
		t.Error("a permit that is lost may be connected anew")
	}
}

// A call names the backends of those permits that have one, each at the place of its permit.
// Permits come in another order with each call.
func TestACallNamesBackendsByPermit(t *testing.T) {
	s, first, second := covering(t)
	want := map[string]string{first.permits[0].ID: "1 1 1 1", first.permits[1].ID: "",
		second.permits[0].ID: "2 2 1 1", second.permits[1].ID: "3 3 1 1"}
	for range 100 {
		k := s.call()
		if len(k.X.Permits) != 4 || len(k.X.Backends) != 4 {
			t.Fatalf("%d permits, %d records", len(k.X.Permits), len(k.X.Backends))
		}
		for i, id := range k.X.Permits {
			if k.X.Backends[i] != want[id] {
				t.Fatalf("%s covers %q, want %q", id, k.X.Backends[i], want[id])
			}
		}
		s.renew(k)
	}
	s = start(t, Config{})
	s.acquire()
	if k := s.call(); len(k.X.Backends) != 0 {
		t.Errorf("records %q of a session that covers nothing", k.X.Backends)
	}
}

// The state is lost. A call has put back a record that has another one after it by now, so another
// call says it before the state counts.
func TestARecordThatACallMissedIsReasserted(t *testing.T) {
	s, first, _ := covering(t)
	k := s.call()
	s.RecordBackend(first.permits[0], "4 4 1")
	s.state = "another"
	s.seen = Effects{}
	if s.renew(k); s.Epoch() != "e" || !s.seen.Heartbeat {
		t.Errorf("epoch %q; another call: %v", s.Epoch(), s.seen.Heartbeat)
	}
	if s.renew(s.call()); s.Epoch() != "another" {
		t.Errorf("epoch %q", s.Epoch())
	}
}

// Redis does not know a permit whose backend was to be recorded. It is lost, and a call shows what
// else is.
func TestAPermitThatCannotBeRecordedIsLost(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	s.pass(time.Millisecond)
	s.seen = Effects{}
	s.NotHeld(s.now, p)
	if s.take(); p.State() != Lost || !s.seen.Heartbeat {
		t.Errorf("state %d; a call: %v", p.State(), s.seen.Heartbeat)
	}
	q := s.NewPermit()
	s.NotHeld(s.now, q) // of another call of the same kind
	if q.State() != Fresh {
		t.Error("a permit that is not held is lost")
	}
}
