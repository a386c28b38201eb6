package redisscript

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that runs scripts. Each run is judged: see judge.

// An answer is a reply, or one of the errors by which a script answers.
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

// known returns the errors that are answers. Any other one fails the history.
func known(t *trial, err error) error {
	var refused message.RefusedMin
	if err == nil || errors.Is(err, message.ErrGone) || errors.As(err, &refused) {
		return err
	}
	t.failf("error %v", err)
	return nil
}

// expected returns the time of Redis's clock as the session expects it. It may have left.
func (t *trial) expected(s *session) int64 { return s.core.Expected(s.local(t.now)) }

func (t *trial) exchange(x message.Exchange) (message.Exchanged, error) {
	t.place.setTime(t.clock())
	got, err := Exchange(context.Background(), t.place, t.keys, x)
	t.say("%s -> %s", shown{x}, answered(got, err))
	a := act{
		name: "Exchange", session: x.Session,
		served:   err == nil && (!got.All || got.Now > 0 && len(x.Waits)+len(x.Tries) == 0),
		promised: got.Promised.Recalled, timeless: got.All && got.Now == 0,
		released: slices.Concat(x.Release, idsOf(x.Drop)),
	}
	t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		if s, want, ok := plainExchange(t.before, time, x); ok {
			return &oracle{state: s, now: time - s.num("skew")}, answer{want, nil}
		}
		handsOver := handsOver(t.before, time, x)
		o := t.begin(time, x.Expected)
		want, err := o.exchange(x)
		if handsOver {
			want = message.Exchanged{
				All: true, Now: want.Now, Wake: want.Wake, Waiting: want.Waiting, Granted: want.Granted,
			}
		}
		return o, answer{want, err}
	})
	return got, err
}

// idsOf lists the UUIDs of stored requests.
func idsOf(requests []string) (all []string) {
	for _, request := range requests {
		_, ids := parsed(request)
		all = append(all, ids...)
	}
	return all
}

func (t *trial) renew(n message.Renewal) (message.Renewed, error) {
	t.place.setTime(t.clock())
	got, err := Renew(context.Background(), t.place, t.keys, n)
	slices.Sort(got.Missing)
	t.say("%s -> %s", shown{n}, answered(got, err))
	a := act{
		name: "Renew", session: n.Session, asserted: n.Permits, counts: true,
		served:  err == nil && got.PausedUntil <= got.Now,
		reports: n.Pools, epoch: n.Epoch,
	}
	if err == nil && n.Epoch != "" && n.Epoch != got.Epoch {
		a.knowsPause = n.Pause
	}
	t.judge(a, answer{got, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, n.Expected)
		want, err := o.renew(n)
		slices.Sort(want.Missing)
		return o, answer{want, err}
	})
	return got, err
}

func (t *trial) recordBackend(s *session, epoch string, expected int64, id, record string) error {
	t.place.setTime(t.clock())
	err := RecordBackend(context.Background(), t.place, t.keys, expected, s.name, epoch, id, record)
	t.say("RecordBackend(%s, %s) -> %v", id, record, err)
	answered := err
	if !errors.Is(err, message.ErrNotHeld) {
		answered = known(t, err)
	}
	a := act{name: "RecordBackend", session: s.name}
	t.judge(a, answer{nil, answered}, func(time int64) (*oracle, any) {
		o := t.begin(time, expected)
		return o, answer{nil, o.record(s.name, epoch, id, record)}
	})
	return err
}

// answerLook says which backends s has seen gone.
func (t *trial) answerLook(
	s *session, epoch string, since, expected int64, ids, records []string,
) {
	t.place.setTime(t.clock())
	freed, err := Gone(context.Background(), t.place, t.keys, expected, epoch, since, ids, records)
	t.say("Gone(%q, %q, since %d) -> %d", ids, records, since, freed)
	a := act{name: "Gone", session: s.name, released: ids}
	t.judge(a, answer{freed, known(t, err)}, func(time int64) (*oracle, any) {
		o := t.begin(time, expected)
		return o, answer{o.gone(epoch, since, ids, records), nil}
	})
}

func (t *trial) leaveScript(s *session, drop []string) {
	drop = slices.Sorted(slices.Values(drop))
	t.place.setTime(t.clock())
	epoch, expected := s.core.Epoch(), t.expected(s)
	err := Leave(context.Background(), t.place, t.keys, false, expected, s.name, epoch, drop)
	t.say("Leave(%s, drop %q)", s.name, drop)
	a := act{name: "Leave", session: s.name, counts: true, released: idsOf(drop)}
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
		o := t.beginOperator(time, expected)
		return o, answer{o.setCapacity(int64(n)), nil}
	})
	t.step(s, func(c *core.Core, _ time.Duration) { c.CapacitySet(got, int64(n)) })
}

// snapshot reads what is there. It runs no script, and changes nothing.
func (t *trial) snapshot() {
	t.place.setTime(t.clock())
	got, err := Load(context.Background(), t.place, t.keys)
	t.must(err)
	there, err := t.place.load()
	t.must(err)
	slices.Sort(got.Quarantined)
	t.say("Load() -> %d held, %d waiting", len(got.Permits), len(got.Queue))
	if want := there.snapshot(got.Now, got.Held); !reflect.DeepEqual(got, want) {
		t.failf("Load() is %+v, want %+v", got, want)
	}
}

func (s *state) snapshot(now int64, held map[string]int64) message.Snapshot {
	live := func(expiries map[string]int64) map[string]int64 {
		out := maps.Clone(expiries)
		maps.DeleteFunc(out, func(_ string, expiry int64) bool { return expiry <= now })
		return out
	}
	number := func(field string) int64 {
		f, err := strconv.ParseFloat(s.Meta[field], 64)
		return exact(f, err)
	}
	out := message.Snapshot{
		Now: now, Capacity: number("cap"), Limit: number("limit"), LimitAt: number("limitat"),
		LimitBy: s.Meta["limitby"], PausedUntil: number("gate"), Pause: s.Meta["pause"],
		Permits: live(s.Permits), Sessions: live(s.Sessions), Info: s.Info, Declared: s.Capacities,
		Held: held,
	}
	for _, id := range slices.Sorted(maps.Keys(s.Quarantine)) {
		if _, counted := out.Permits[id]; counted {
			out.Quarantined = append(out.Quarantined, id)
		}
	}
	for _, request := range s.queued() {
		_, ids := parsed(request)
		out.Queue = append(out.Queue, ids)
	}
	return out
}

// twice runs a script again, as after a lost reply. The second run must change nothing.
func (t *trial) twice(run func()) {
	once := t.before
	run()
	// A heartbeat can grant its own session a permit. The second run then says what the session
	// held before that grant. The next heartbeat corrects it.
	correct := func(held map[string]int64) map[string]int64 {
		held = maps.Clone(held)
		maps.DeleteFunc(held, func(pool string, _ int64) bool {
			_, wrong := t.miscounted[pool]
			return wrong
		})
		return held
	}
	queue := (*state).queued
	if len(once.Debts) > 0 || t.plan.minima {
		// A request that is repeated is ranked anew. The first run may have recalled a permit from
		// a pool that waits itself, and so ranks better now. Or it has granted what the minimum of
		// its session lacked.
		queue = func(s *state) []string { return keysInOrder(s.Queue) }
	}
	for _, part := range []struct {
		name        string
		once, again any
	}{
		{"permits", keysInOrder(once.Permits), keysInOrder(t.before.Permits)},
		{"queue", queue(once), queue(t.before)},
		{"held", correct(once.Held), correct(t.before.Held)},
		{"sessions", keysInOrder(once.Sessions), keysInOrder(t.before.Sessions)},
		{"sessions that are back", once.back(), t.before.back()},
	} {
		if !reflect.DeepEqual(part.once, part.again) {
			t.failf("run twice, it changed the %s from %v to %v", part.name, part.once, part.again)
		}
	}
}

// keysInOrder lists the keys of a map.
func keysInOrder[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
