package redisscript

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// A plan is what may happen in a history.
type plan struct {
	seed       uint64
	steps      []step
	capacity   int
	ttl, retry time.Duration
	roundTrip  time.Duration   // what a message and its answer take, if nothing happens to them
	faults     int             // % of the messages that something happens to
	calmed     map[string]bool // to those nothing does
	// Which parts of what can go wrong do. A history of few of them is easier to read, and gets deeper.
	pools, minima, maxima, replicas, moves, late, lazy, drifts, cuts, pauses, losses, clocks, operator, others, fence, deaf bool
	// windows: something is in it for which docs/SAFETY.md says that more than the capacity can be held for a
	// while: state was lost while somebody could not be reached, or was stopped with backends that nobody knows.
	windows bool
}

// A trial is one history at one place. After every script the state in Redis, the answer and the pushes must
// be what the oracle says, and after everything that happens the specification must hold.
type trial struct {
	plan                        *plan
	place                       place
	keys                        Keys
	now                         time.Duration // the time of the world since the history began
	set                         int64         // ms by which Redis's clock was set
	ahead                       []occurrence  // what will happen, in that order
	stalledUntil                time.Duration // Redis executes nothing before
	before                      *state
	calls                       int
	sessions                    [4]*session
	leaving                     []*session
	born                        int                      // sessions there ever were
	pids                        int                      // backends there ever were
	postgres                    map[string]*backend      // those that live, by the permit that covers them
	counted                     int                      // other clients' permits that ever were
	calm                        bool                     // it is the end: nothing goes wrong any more
	returning                   bool                     // all give back what they are granted
	allowed                     int                      // permits that may be held at present
	lossesUntil                 time.Duration            // what a lost state granted may be trusted until then
	ends                        map[string]time.Duration // when each lease ends, if Redis's clock goes right
	unnoticed                   bool                     // the clock was set, and nobody was there who could tell: see common.lua
	lastSet                     int64                    // what set was when a script last looked
	lastScript                  time.Duration            // when a script last looked at that clock ...
	lastClock                   int64                    // ... and saw this
	astray                      map[string]bool          // UUIDs that Redis may count though their session does not know
	adrift                      map[string]bool          // pools whose count waits for a heartbeat
	recalled, withdrawn         map[string]int64         // by session: recalls that Redis ever made, or took back
	toldRecalled, toldWithdrawn map[string]int64         // and those that its pools were told of
	damaged                     bool                     // somebody deleted a key: what is counted may be wrong for a while
	revoked                     map[string]bool          // permits that somebody removed: their holders do not know yet
	faults                      []string                 // messages that something happened to
	trace                       func(string)
}

// broken ends a trial.
type broken struct{ why string }

func (t *trial) failf(format string, args ...any) { panic(broken{fmt.Sprintf(format, args...)}) }

func (t *trial) say(format string, args ...any) {
	if t.trace != nil {
		t.trace(fmt.Sprintf(format, args...))
	}
}

const modelStart = 1_790_000_000_000 // some day in 2026

// run runs the plan's first n steps, and then, if they are all, brings everything to its end. It returns what
// went wrong.
func (t *trial) run(steps []step, finish bool) (why string, failedAt int) {
	at := 0
	defer func() {
		if r := recover(); r != nil {
			b, ok := r.(broken)
			if !ok {
				panic(r)
			}
			why, failedAt = b.why, at
		}
	}()
	t.place.restart()
	t.adrift, t.astray, t.revoked = make(map[string]bool), make(map[string]bool), make(map[string]bool)
	t.recalled, t.withdrawn = make(map[string]int64), make(map[string]int64)
	t.toldRecalled, t.toldWithdrawn = make(map[string]int64), make(map[string]int64)
	t.postgres, t.ends = make(map[string]*backend), make(map[string]time.Duration)
	t.reload()
	for i, s := range steps {
		at = i
		t.take(s)
		t.checkNow()
		t.until(t.now)
	}
	at = len(steps)
	if finish {
		t.finish()
	}
	return "", 0
}

// reload takes the state as it is, after somebody else changed it.
func (t *trial) reload() {
	s, err := t.place.load()
	if err != nil {
		t.failf("state: %v", err)
	}
	t.before = s
}

// clock is what Redis's shows, in ms.
func (t *trial) clock() int64 { return modelStart + t.now.Milliseconds() + t.set }

// scriptClock is what a script would take for the time, if it ran now.
func (t *trial) scriptClock() int64 { return t.lastClock + (t.now - t.lastScript).Milliseconds() }

func (t *trial) ttlMillis() int64 { return t.plan.ttl.Milliseconds() }

// judge compares what a script did with what the oracle predicts for it, and then looks at the specification.
func (t *trial) judge(a act, reply any, predict func(time int64) (*oracle, any)) {
	t.calls++
	after, err := t.place.load()
	if err != nil {
		t.failf("%s: state: %v", a.name, err)
	}
	listeners := t.place.listeners()
	got := t.place.pushed()
	var o *oracle
	least := ""
	for late := range t.place.late() + 1 {
		var want any
		o, want = predict(t.clock() + late)
		var wrong []string
		if fmt.Sprintf("%+v", reply) != fmt.Sprintf("%+v", want) {
			wrong = append(wrong, fmt.Sprintf("answered %+v\nwant     %+v", reply, want))
		}
		if d := after.diff(o.state); d != "" {
			wrong = append(wrong, d)
		}
		if s, w := sortPushes(got, listeners), sortPushes(o.pushes, listeners); !slices.Equal(s, w) {
			wrong = append(wrong, fmt.Sprintf("pushed %q\nwant   %q", s, w))
		}
		if len(wrong) == 0 {
			least = ""
			break
		}
		if text := strings.Join(wrong, "\n"); least == "" || len(text) < len(least) {
			least = text
		}
	}
	if least != "" {
		t.failf("%s: the oracle says otherwise:\n%s", a.name, least)
	}
	before := t.before
	t.before = after
	a.now, a.pushes = o.now, o.pushes
	if !a.timeless {
		t.lastScript, t.lastClock, t.lastSet = t.now, a.now, t.set
	}
	for id, expiry := range after.Permits {
		if before.Permits[id] != expiry {
			t.ends[id] = t.now.Truncate(time.Millisecond) + time.Duration(expiry-a.now)*time.Millisecond
		}
	}
	a.served = a.served && before.num("gate") <= a.now // if it opened just now, never mind
	t.checkScript(before, after, a)
	t.carryPushes(got)
}

func (t *trial) begin(time, expected int64) *oracle {
	return begin(t.before, time, expected, t.place.sharded(), t.place.listeners())
}

func (t *trial) exchange(x message.Exchange) (message.Exchanged, error) {
	t.place.setTime(t.clock())
	got, err := Exchange(context.Background(), t.place, t.keys, x)
	a := act{name: "Exchange", session: x.Session, served: err == nil && !got.All, promised: got.Promised.Recalled,
		timeless: got.All && got.Now == 0}
	a.released = slices.Clone(x.Release)
	for _, d := range x.Drop {
		_, ids := parsed(d)
		a.released = append(a.released, ids...)
	}
	t.say("%s -> %s", shown{x}, answered(got, err))
	t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		if s, want, ok := lane(t.before, time, x); ok {
			o := &oracle{state: s, now: time - s.num("skew")}
			return o, answer{want, nil}
		}
		o := t.begin(time, x.Expected)
		want, err := o.exchange(x)
		return o, answer{want, err}
	})
	return got, err
}

type answer struct {
	reply any
	err   error
}

func answered(reply any, err error) any {
	if err != nil {
		return err
	}
	return shown{reply}
}

// known lets the errors pass that are answers.
func known(t *trial, err error) error {
	var refused message.RefusedMin
	if err == nil || errors.Is(err, message.ErrGone) || errors.As(err, &refused) {
		return err
	}
	t.failf("error %v", err)
	return nil
}

func (t *trial) renew(n message.Renewal) (message.Renewed, error) {
	t.place.setTime(t.clock())
	got, err := Renew(context.Background(), t.place, t.keys, n)
	slices.Sort(got.Missing)
	t.say("%s -> %s", shown{n}, answered(got, err))
	a := act{name: "Renew", session: n.Session, asserted: n.Permits, counts: true, served: err == nil && got.PausedUntil <= got.Now}
	t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, n.Expected)
		want, err := o.renew(n)
		slices.Sort(want.Missing)
		return o, answer{want, err}
	})
	return got, err
}

// expected is what Redis's clock should show, as a session that lives, or has ended, can say.
func (t *trial) expected(s *session) int64 { return s.core.Expected(s.local(t.now)) }

func (t *trial) mark(s *session, epoch string, expected int64, id, record string) error {
	t.place.setTime(t.clock())
	err := RecordBackend(context.Background(), t.place, t.keys, expected, s.name, epoch, id, record)
	t.say("RecordBackend(%s, %s) -> %v", id, record, err)
	answered := err
	if !errors.Is(err, message.ErrNotHeld) {
		answered = known(t, err)
	}
	t.judge(act{name: "Mark", session: s.name}, answer{nil, answered}, func(time int64) (*oracle, any) {
		o := t.begin(time, expected)
		return o, answer{nil, o.mark(s.name, epoch, id, record)}
	})
	return err
}

// freeGone says that backends were seen gone. A permit that covers another one by now, or may soon, stays held.
func (t *trial) freeGone(s *session, epoch string, expected int64, ids, records []string) {
	t.place.setTime(t.clock())
	before := t.before
	freed, err := Gone(context.Background(), t.place, t.keys, expected, epoch, ids, records)
	t.say("Gone(%q, %q) -> %d", ids, records, freed)
	t.judge(act{name: "Gone", session: s.name, released: ids}, answer{freed, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, expected)
		return o, answer{o.gone(epoch, ids, records), nil}
	})
	for _, id := range ids {
		_, was := before.Permits[id]
		_, is := t.before.Permits[id]
		if b, lives := t.postgres[id]; was && !is && lives {
			t.failf("%s was freed, and its backend %s lives", id, b.tag)
		}
	}
}

func (t *trial) leaveScript(s *session, drop []string) {
	drop = slices.Sorted(slices.Values(drop))
	t.place.setTime(t.clock())
	epoch, expected := s.core.Epoch(), t.expected(s)
	err := Leave(context.Background(), t.place, t.keys, false, expected, s.name, epoch, drop)
	t.say("Leave(%s, drop %q)", s.name, drop)
	a := act{name: "Leave", session: s.name, counts: true}
	for _, d := range drop {
		_, ids := parsed(d)
		a.released = append(a.released, ids...)
	}
	t.judge(a, known(t, err), func(time int64) (*oracle, any) {
		o := t.begin(time, expected)
		o.leave(s.name, epoch, drop)
		return o, nil
	})
}

func (t *trial) setCapacity(s *session, n int) {
	t.place.setTime(t.clock())
	expected := t.expected(s)
	got, err := SetCapacity(context.Background(), t.place, t.keys, expected, n, "op")
	t.say("SetCapacity(%d) -> %d", n, got)
	t.judge(act{name: "SetCapacity"}, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, expected)
		return o, answer{o.setCapacity(int64(n)), nil}
	})
	t.step(s, func(c *core.Core, _ time.Duration) { c.CapacitySet(got, int64(n)) })
}

// snapshot reads what is there: it runs no script, and changes nothing.
func (t *trial) snapshot() {
	t.place.setTime(t.clock())
	got, err := Load(context.Background(), t.place, t.keys)
	if err != nil {
		t.failf("Load: %v", err)
		return
	}
	t.say("Load() -> %d held, %d waiting", len(got.Permits), len(got.Queue))
	there, err := t.place.load()
	t.must(err)
	number := func(field string) int64 { n, _ := strconv.ParseFloat(there.Meta[field], 64); return exact(n, nil) }
	want := message.Snapshot{Now: got.Now, Capacity: number("cap"), Limit: number("limit"), LimitAt: number("limitat"),
		LimitBy: there.Meta["limitby"], PausedUntil: number("gate"), Pause: there.Meta["pause"],
		Permits: map[string]int64{}, Sessions: map[string]int64{}, Info: there.Info, Declared: there.Capacities, Held: got.Held}
	for id, expiry := range there.Permits {
		if _, quarantined := there.Quarantine[id]; expiry > got.Now {
			want.Permits[id] = expiry
			if quarantined {
				want.Quarantined = append(want.Quarantined, id)
			}
		}
	}
	for session, expiry := range there.Sessions {
		if expiry > got.Now {
			want.Sessions[session] = expiry
		}
	}
	for _, request := range there.line() {
		_, ids := parsed(request)
		want.Queue = append(want.Queue, ids)
	}
	slices.Sort(got.Quarantined)
	slices.Sort(want.Quarantined)
	if !reflect.DeepEqual(got, want) && len(got.Info)+len(want.Info) > 0 {
		t.failf("Load() is %+v, want %+v", got, want)
	}
}

// twice runs a call again, as after a reply that was lost, and wants to find nothing changed.
func (t *trial) twice(call func()) {
	once := t.before
	call()
	// A heartbeat that grants its own session something says, the second time, what was held before
	// that. The next one puts it right.
	settled := func(held map[string]int64) map[string]int64 {
		held = maps.Clone(held)
		maps.DeleteFunc(held, func(sharer string, _ int64) bool { return t.adrift[sharer] })
		return held
	}
	line := (*state).line
	if len(once.Debts) > 0 || t.plan.minima {
		// What is said again is ranked anew. The first call may have asked a pool for a permit, which waits itself and now has a better rank;
		// or have granted behind a request what its session's minimum lacked.
		line = func(s *state) []string { return keysOf(s.Queue) }
	}
	for _, part := range []struct {
		name        string
		once, again any
	}{
		{"permits", keysOf(once.Permits), keysOf(t.before.Permits)},
		{"queue", line(once), line(t.before)},
		{"held", settled(once.Held), settled(t.before.Held)},
		{"sessions", keysOf(once.Sessions), keysOf(t.before.Sessions)},
	} {
		if !reflect.DeepEqual(part.once, part.again) {
			t.failf("said twice, it changed the %s from %v to %v", part.name, part.once, part.again)
		}
	}
}

func keysOf(m map[string]int64) []string { return byScore(mapZero(m)) }

func mapZero(m map[string]int64) map[string]int64 {
	out := make(map[string]int64, len(m))
	for k := range m {
		out[k] = 0
	}
	return out
}
