package redisscript

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A session makes a call of the heartbeat before Redis loses its state, and Redis executes the call
// once the pause after the loss is over. The permits that it re-asserts must not be held beside
// those granted since. The call has to be in flight for a whole lease, so the model hardly ever
// meets this case.
func TestALateCallAfterALossReassertsNothing(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	redis.setTime(modelStart)
	a, b := "000000a0-0001-8010", "000000b0-0002-8010"
	x, y := a+"-8000-000000000001", b+"-8000-000000000001"
	renew := func(n message.Renewal) message.Renewed {
		t.Helper()
		n.TTLMillis, n.Capacity, n.Info = 2000, 1, "{}"
		got, err := Renew(t.Context(), redis, k, n)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := renew(message.Renewal{Session: a, NewEpoch: "first"}).Epoch
	renew(message.Renewal{Session: b, NewEpoch: "second"})
	_ = redis.do("FLUSHALL")
	second := renew(message.Renewal{Session: b, Epoch: first, NewEpoch: "second", Expected: modelStart}).Epoch
	now := int64(modelStart)
	for range 4 {
		now += 600
		redis.setTime(now)
		renew(message.Renewal{Session: b, Epoch: second, Expected: now})
	}
	got, err := Exchange(t.Context(), redis, k, message.Exchange{Expected: now, Session: b, Epoch: second, TTLMillis: 2000, Waits: []string{y}})
	if err != nil || !got.All {
		t.Fatalf("bug in the test: %+v, %v", got, err)
	}
	late := renew(message.Renewal{Session: a, Epoch: first, NewEpoch: "third", Permits: []string{x}, Expected: modelStart})
	all, err := Load(t.Context(), redis, k)
	if err != nil {
		t.Fatal(err)
	}
	if len(all.Permits) != 1 || all.Permits[y] == 0 || !slices.Contains(late.Missing, x) {
		t.Errorf("%v held, missing %q: want %s alone", all.Permits, late.Missing, y)
	}
}

// A heartbeat that found the state lost is executed, its connection breaks, Redis loses its state
// again, and then executes the heartbeat that is sent again. Meanwhile another session has taken
// the first of the two new epochs. It must find that what it holds was forgotten, and re-assert it.
func TestAHeartbeatThatIsSentAgainBeginsAnotherEpoch(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	now := int64(modelStart)
	renew := func(n message.Renewal) message.Renewed {
		t.Helper()
		now += 10
		redis.setTime(now)
		n.TTLMillis, n.Capacity, n.Info, n.Expected = 2000, 1, "{}", now
		got, err := Renew(t.Context(), redis, k, n)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	a, b := "000000a0-0001-8010", "000000b0-0002-8010"
	held := b + "-8000-000000000001"
	old := renew(message.Renewal{Session: a, NewEpoch: "a-1"}).Epoch
	renew(message.Renewal{Session: b, NewEpoch: "b-1"})
	twice := message.Renewal{Session: a, Epoch: old, NewEpoch: "a-2"}
	holds := message.Renewal{Session: b, Epoch: old, NewEpoch: "b-2", Permits: []string{held}}
	for lost := range 2 {
		_ = redis.do("FLUSHALL")
		began := renew(twice).Epoch
		got := renew(holds)
		if len(got.Missing) > 0 || got.Epoch != began || got.Epoch == holds.Epoch {
			t.Errorf("loss %d: %s knows %q, and is told of %q and that %q are not held", 1+lost, b, holds.Epoch, got.Epoch, got.Missing)
		}
		holds.Epoch = got.Epoch
	}
}

// A batch that was long on its way brings a request back that its session has withdrawn. It wants
// more than the minimum of another session leaves, so it is never granted. Within a lease those
// behind it are granted what is free all the same.
func TestARequestThatCanNeverBeGrantedBlocksNobody(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	now := int64(modelStart)
	a, b, c := "000000a0-0001-8010", "000000b0-0002-8010", "000000c0-0003-8010"
	epochs, minima := make(map[string]string), map[string]int{b: 2}
	renew := func(session string) {
		t.Helper()
		got, err := Renew(t.Context(), redis, k, message.Renewal{Session: session, Epoch: epochs[session], NewEpoch: "e",
			TTLMillis: 2000, Capacity: 3, Min: minima[session], Info: "{}", Expected: now})
		if err != nil {
			t.Fatal(err)
		}
		epochs[session] = got.Epoch
	}
	exchange := func(session string, x message.Exchange) message.Exchanged {
		t.Helper()
		x.Session, x.Epoch, x.TTLMillis, x.Expected = session, epochs[session], 2000, now
		got, err := Exchange(t.Context(), redis, k, x)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	redis.setTime(now)
	renew(a)
	renew(b)
	renew(c)
	two := message.Permits(2000, a+"-8000-000000000001", a+"-8000-000000000002")
	asks := message.Exchange{Requests: []message.Request{{Kind: message.Wait, Permits: two}}}
	exchange(a, asks)
	exchange(a, message.Exchange{Drop: []string{two}})
	exchange(a, asks)
	waits := message.Exchange{Waits: []string{c + "-8000-000000000001"}}
	if got := exchange(c, waits); got.Waiting != 2 || got.Free != 3 {
		t.Fatalf("bug in the test: %+v", got)
	}
	for range 4 {
		now += 600
		redis.setTime(now)
		for _, session := range []string{a, b, c} {
			renew(session)
		}
	}
	after, err := redis.load()
	if err != nil {
		t.Fatal(err)
	}
	if after.Permits[waits.Waits[0]] == 0 || len(after.Permits) != 1 || len(after.Queue) != 0 {
		t.Errorf("a lease later %v are held, and %v wait", after.Permits, after.Queue)
	}
}

// A request that waits is refused once it wants more than the capacity. Its session knows nothing of
// it any more, so it leaves the queue.
func TestARefusedRequestLeavesTheQueue(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	redis.setTime(modelStart)
	s := "000000a0-0001-8010"
	joined, err := Renew(t.Context(), redis, k, message.Renewal{Session: s, TTLMillis: 2000, Capacity: 2, Info: "{}", NewEpoch: "e"})
	if err != nil {
		t.Fatal(err)
	}
	two := message.Permits(2000, s+"-8000-000000000001", s+"-8000-000000000002")
	asks := message.Exchange{Session: s, Epoch: joined.Epoch, TTLMillis: 2000, Expected: modelStart,
		Requests: []message.Request{{Kind: message.Wait, Permits: two}}}
	holds := asks
	holds.Requests, holds.Waits = nil, []string{s + "-8000-000000000003"}
	for _, x := range []message.Exchange{holds, asks} {
		if _, err := Exchange(t.Context(), redis, k, x); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := SetCapacity(t.Context(), redis, k, modelStart, 1, "op"); err != nil {
		t.Fatal(err)
	}
	got, err := Exchange(t.Context(), redis, k, asks)
	if err != nil {
		t.Fatal(err)
	}
	after, err := redis.load()
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Refused) != 1 || got.Waiting != 0 || len(after.Queue) != 0 {
		t.Errorf("refused %q, %d wait: %v", got.Refused, got.Waiting, after.Queue)
	}
}

// A hand deletes what the sessions declare, and an operator asks how many permits are held. Requests
// go on waiting for a permit of the capacity that was in force.
func TestTheCapacityStaysWhenWhatSessionsDeclareIsDeleted(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	redis.setTime(modelStart)
	s := "000000a0-0001-8010"
	joined, err := Renew(t.Context(), redis, k, message.Renewal{Session: s, TTLMillis: 2000, Capacity: 2, Info: "{}", NewEpoch: "e"})
	if err != nil {
		t.Fatal(err)
	}
	_ = redis.do("DEL", k.all[5])
	if _, err := CountHeld(t.Context(), redis, k, 0); err != nil {
		t.Fatal(err)
	}
	got, err := Exchange(t.Context(), redis, k, message.Exchange{Session: s, Epoch: joined.Epoch, TTLMillis: 2000,
		Expected: modelStart, Waits: []string{s + "-8000-000000000001"}})
	if err != nil || len(got.Refused) != 0 || !got.All {
		t.Errorf("%+v, %v; want a grant", got, err)
	}
}

// A hand writes into meta what no script does. A part of their own reads it for requests for plain
// permits alone. They are granted no more than the capacity all the same, and are answered.
func TestNoReserveGrantsMoreThanTheCapacity(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	s := "000000a0-0001-8010"
	for _, reserve := range []string{"-1000", "-1e300", "-inf", "text", "", "nan", "1e300"} {
		redis.restart()
		redis.setTime(modelStart)
		joined, err := Renew(t.Context(), redis, k, message.Renewal{Session: s, TTLMillis: 2000, Capacity: 2, Info: "{}", NewEpoch: "e"})
		if err != nil {
			t.Fatal(err)
		}
		_ = redis.do("HSET", k.all[2], "reserve", reserve)
		for i := range 4 {
			_, err := Exchange(t.Context(), redis, k, message.Exchange{Session: s, Epoch: joined.Epoch, TTLMillis: 2000, Expected: modelStart,
				Waits: []string{fmt.Sprintf("%s-8000-%012x", s, i)}})
			if err != nil && !errors.Is(err, message.ErrGone) {
				t.Errorf("reserve %q: %v", reserve, err)
			}
		}
		if n := held(t, redis, k); n > 2 {
			t.Errorf("reserve %q: %d are held, the capacity is 2", reserve, n)
		}
	}
}

// The number that orders arrivals outgrows its part of a place in the queue. First come is first served all the same, before, while and
// after it begins anew, and however often a session asks for what waits.
func TestArrivalsAreInOrderThoughTheirNumberBeginsAnew(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	s := "000000a0-0001-8010"
	for from := range int64(5) {
		redis.restart()
		redis.setTime(modelStart)
		joined, err := Renew(t.Context(), redis, k, message.Renewal{Session: s, TTLMillis: 2000, Capacity: 1, Info: "{}", NewEpoch: "e"})
		if err != nil {
			t.Fatal(err)
		}
		exchange := func(release string, waits ...string) message.Exchanged {
			t.Helper()
			x := message.Exchange{Session: s, Epoch: joined.Epoch, TTLMillis: 2000, Expected: modelStart, Waits: waits}
			if release != "" {
				x.Release = []string{release}
			}
			got, err := Exchange(t.Context(), redis, k, x)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		ids := make([]string, 5)
		for i := range ids {
			ids[i] = fmt.Sprintf("%s-8000-%012x", s, i)
		}
		exchange("", ids[0])
		_ = redis.do("HSET", k.all[2], "seq", 1<<36-from)
		for _, id := range ids[1:] {
			exchange("", id)
		}
		for i := range ids[1:] {
			exchange("", ids[len(ids)-1-i])
		}
		for i, id := range ids[1:] {
			if got := exchange(ids[i]); !slices.Equal(got.Granted, []string{id}) {
				t.Fatalf("from 2^36 - %d: granted %q, want the %d. to come", from, got.Granted, i+1)
			}
		}
		after, err := redis.load()
		if err != nil {
			t.Fatal(err)
		}
		if seq := after.num("seq"); seq > 10 && from < 4 {
			t.Errorf("from 2^36 - %d: the next number is %d", from, seq)
		}
	}
}

// A batch with nothing but an offer is sent once more if its connection broke, without the offer.
// Redis answers the empty batch.
func TestAnEmptyExchange(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	redis.setTime(modelStart)
	s := "000000a0-0001-8010"
	joined, err := Renew(t.Context(), redis, k, message.Renewal{Session: s, TTLMillis: 2000, Capacity: 1, Info: "{}", NewEpoch: "e"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Exchange(t.Context(), redis, k, message.Exchange{Session: s, Epoch: joined.Epoch, TTLMillis: 2000, Offerer: s + "-8001"})
	if err != nil || got.Free != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// A session asks again for a permit that it was granted without hearing of it. Meanwhile an operator
// has revoked the permit, or its lease was over while its backend lived on.
func TestAPermitInQuarantineIsNotGrantedAgain(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	redis.setTime(modelStart)
	const session = "000000a0-0001-8010"
	joined, err := Renew(t.Context(), redis, k, message.Renewal{
		Session: session, NewEpoch: "e", TTLMillis: 2000, Capacity: 3, Info: "{}",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := func(kind string, ids ...string) message.Exchanged {
		t.Helper()
		x := message.Exchange{
			Session: session, Epoch: joined.Epoch, TTLMillis: 2000, Expected: modelStart, Waits: ids,
		}
		if kind == "try" {
			x.Waits, x.Tries = nil, ids
		}
		got, err := Exchange(t.Context(), redis, k, x)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for i, kind := range []string{"wait", "try"} {
		id := fmt.Sprintf("%s-8000-%012x", session, i)
		if got := want(kind, id); !got.All && len(got.Granted) == 0 {
			t.Fatalf("bug in the test: %+v", got)
		}
		if _, err := Evict(t.Context(), redis, k, modelStart, session, true, "op", ""); err != nil {
			t.Fatal(err)
		}
		if got := want(kind, id); got.All || !slices.Equal(got.Refused, []string{id}) {
			t.Errorf("%s: answered %+v, want it refused", kind, got)
		}
	}
}

// A batch of a session that knows another state is refused, also where all it wants is plain: its
// session may not be counted here, and re-asserts first what it holds.
func TestABatchOfAnotherStateIsRefused(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	redis.setTime(modelStart)
	const session, other = "000000a0-0001-8010", "000000b0-0002-8010"
	const x, y = session + "-8000-000000000001", other + "-8000-000000000001"
	epoch := ""
	for _, s := range []string{session, other} {
		joined, err := Renew(t.Context(), redis, k, message.Renewal{
			Session: s, NewEpoch: "e", TTLMillis: 2000, Capacity: 1, Info: "{}",
		})
		if err != nil {
			t.Fatal(err)
		}
		epoch = joined.Epoch
	}
	exchange := func(x message.Exchange) error {
		x.TTLMillis, x.Expected = 2000, modelStart
		_, err := Exchange(t.Context(), redis, k, x)
		return err
	}
	err := exchange(message.Exchange{Session: session, Epoch: "another", Waits: []string{x}})
	if !errors.Is(err, message.ErrGone) {
		t.Errorf("a permit is wanted: %v, want ErrGone", err)
	}
	for _, x := range []message.Exchange{
		{Session: session, Epoch: epoch, Waits: []string{x}},
		{Session: other, Epoch: epoch, Waits: []string{y}},
	} {
		if err := exchange(x); err != nil {
			t.Fatal(err)
		}
	}
	err = exchange(message.Exchange{Session: session, Epoch: "another", Release: []string{x}})
	if !errors.Is(err, message.ErrGone) {
		t.Errorf("a permit is released while another waits: %v, want ErrGone", err)
	}
}
