package redisscript

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// A plan is what may happen in a history.
type plan struct {
	seed     uint64
	steps    []step
	capacity int
	ttl      int64
	// Which parts of what can go wrong do. A history of few of them is easier to read, and gets deeper.
	pools, minima, late, cuts, losses, clocks, operator, others, fence, deaf bool
	// windows: something is in it for which ARCHITECTURE.md says that more than the capacity can be held for a while.
	windows bool
}

// A trial is one history at one place. After every script the state in Redis, the answer and the pushes must be what the oracle says, and
// nothing promised may be broken.
type trial struct {
	plan     *plan
	place    place
	keys     Keys
	now      int64 // ms; the time of all sessions' monotonic clocks
	set      int64 // by which Redis's clock was set
	before   *state
	calls    int
	peers    [4]*peer
	born     int // sessions there ever were
	strays   []stray
	counted  int               // other clients' permits that ever were
	postgres map[string]string // the backends that live, by the permit that covers them
	dying    []string          // of those: the permits of processes that were killed, whose backends end in a moment
	ended    bool              // all backends can be ended
	adrift   map[string]bool   // sharers whose count waits for a heartbeat
	damaged  bool              // somebody deleted a key: what is counted may be wrong for a while
	revoked  bool              // somebody removed a permit: its holder does not know yet
	trace    func(string)
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

// run runs the plan's first n steps, and then, if they are all, brings everything to its end. It returns what went wrong.
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
	t.now, t.adrift, t.postgres, t.dying = modelStart, make(map[string]bool), make(map[string]string), nil
	t.reload()
	for i, s := range steps {
		at = i
		t.step(s)
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

func (t *trial) clock() int64 { return t.now + t.set }

// judge compares what a script did with what the oracle predicts for it, and then looks at the promises.
func (t *trial) judge(a act, reply any, predict func(time int64) (*oracle, any)) *oracle {
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
	a.served = a.served && before.num("gate") <= a.now // if it opened just now, never mind
	t.checkPromises(before, after, a)
	t.deliver(got)
	return o
}

func (t *trial) begin(time, expected int64) *oracle {
	return begin(t.before, time, expected, t.place.sharded(), t.place.listeners())
}

func (t *trial) exchange(x Exchange) (Exchanged, error) {
	t.place.setTime(t.clock())
	got, err := x.Run(context.Background(), t.place, t.keys)
	a := act{name: "Exchange", session: x.Session, served: err == nil && !got.All, promised: got.Promised.Recalled}
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
	var refused RefusedMin
	if err == nil || errors.Is(err, ErrGone) || errors.As(err, &refused) {
		return err
	}
	t.failf("error %v", err)
	return nil
}

func (t *trial) renew(n Renew) (Renewed, error) {
	t.place.setTime(t.clock())
	got, err := n.Run(context.Background(), t.place, t.keys)
	t.say("%s -> %s", shown{n}, answered(got, err))
	a := act{name: "Renew", session: n.Session, asserted: n.Permits, counts: true, served: err == nil && got.Gate <= got.Now}
	t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, n.Expected)
		want, err := o.renew(n)
		return o, answer{want, err}
	})
	return got, err
}

func (t *trial) mark(p *peer, epoch, id, backend string) error {
	t.place.setTime(t.clock())
	err := Mark(context.Background(), t.place, t.keys, p.expected(t.now), p.session, epoch, id, backend)
	t.say("Mark(%s, %s) -> %v", id, backend, err)
	answered := err
	if !errors.Is(err, ErrNotHeld) {
		answered = known(t, err)
	}
	t.judge(act{name: "Mark", session: p.session}, answer{nil, answered}, func(time int64) (*oracle, any) {
		o := t.begin(time, p.expected(t.now))
		return o, answer{nil, o.mark(p.session, epoch, id, backend)}
	})
	return err
}

// freeGone says that backends were seen gone. A permit that covers another one by now, or may soon,
// stays held.
func (t *trial) freeGone(p *peer, epoch string, ids, records []string) {
	t.place.setTime(t.clock())
	before := t.before
	freed, err := Gone(context.Background(), t.place, t.keys, p.expected(t.now), epoch, ids, records)
	t.say("Gone(%q, %q) -> %d", ids, records, freed)
	t.judge(act{name: "Gone", session: p.session, released: ids}, answer{freed, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, p.expected(t.now))
		return o, answer{o.gone(epoch, ids, records), nil}
	})
	for _, id := range ids {
		_, was := before.Permits[id]
		_, is := t.before.Permits[id]
		if backend, lives := t.postgres[id]; was && !is && lives {
			t.failf("%s was freed, and its backend %s lives", id, backend)
		}
	}
}

func (t *trial) leave(expected int64, session, epoch string, drop []string) {
	t.place.setTime(t.clock())
	err := Leave(context.Background(), t.place, t.keys, false, expected, session, epoch, drop)
	t.say("Leave(%s, drop %q)", session, drop)
	a := act{name: "Leave", session: session, counts: true}
	for _, d := range drop {
		_, ids := parsed(d)
		a.released = append(a.released, ids...)
	}
	t.judge(a, known(t, err), func(time int64) (*oracle, any) {
		o := t.begin(time, expected)
		o.leave(session, epoch, drop)
		return o, nil
	})
}

func (t *trial) setCapacity(expected int64, n int) {
	t.place.setTime(t.clock())
	got, err := SetCapacity(context.Background(), t.place, t.keys, expected, n)
	t.say("SetCapacity(%d) -> %d", n, got)
	t.judge(act{name: "SetCapacity"}, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, expected)
		return o, answer{o.setCapacity(int64(n)), nil}
	})
}

// snapshot reads, and must change nothing but what every script may: the skew, and the mark of a deleted set.
func (t *trial) snapshot() {
	t.place.setTime(t.clock())
	got, err := Load(context.Background(), t.place, t.keys)
	slices.Sort(got.Quarantined)
	t.say("Load() -> %d held, %d waiting", len(got.Permits), len(got.Queue))
	t.judge(act{name: "Load"}, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, 0)
		want := Snapshot{Now: o.now, Capacity: o.capacity, Limit: o.num("limit"), Gate: o.gate, Permits: map[string]int64{},
			Sessions: map[string]int64{}, Info: o.Info, Declared: o.Capacities}
		for _, id := range slices.Sorted(maps.Keys(o.Quarantine)) {
			if expiry, counted := o.Permits[id]; counted && o.fence && expiry > o.now {
				want.Quarantined = append(want.Quarantined, id)
			}
		}
		for id, expiry := range o.Permits {
			if expiry > o.now {
				want.Permits[id] = expiry
			}
		}
		for session, expiry := range o.Sessions {
			if expiry > o.now {
				want.Sessions[session] = expiry
			}
		}
		for _, request := range o.line() {
			_, ids := parsed(request)
			want.Queue = append(want.Queue, ids)
		}
		return o, answer{want, nil}
	})
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
