package redisscript

import (
	"slices"
	"testing"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A session made a call of the heartbeat before Redis lost its state. The call reaches Redis when
// the pause is over. Redis must not hold what the call asserts beside what it has granted since. The
// call was on its way for a whole lease, so the model hardly ever meets this.
func TestAnAssertionThatComesAfterThePause(t *testing.T) {
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
	renew(message.Renewal{Session: a, NewEpoch: "first"})
	renew(message.Renewal{Session: b, NewEpoch: "second"})
	_ = redis.do("FLUSHALL")
	renew(message.Renewal{Session: b, Epoch: "first", NewEpoch: "second", Expected: modelStart})
	now := int64(modelStart)
	for range 4 {
		now += 600
		redis.setTime(now)
		renew(message.Renewal{Session: b, Epoch: "second", Expected: now})
	}
	got, err := Exchange(t.Context(), redis, k, message.Exchange{
		Expected: now, Session: b, Epoch: "second", TTLMillis: 2000, Waits: []string{y},
	})
	if err != nil || !got.All {
		t.Fatalf("bug in the test: %+v, %v", got, err)
	}
	late := renew(message.Renewal{
		Session: a, Epoch: "first", NewEpoch: "third", Permits: []string{x}, Expected: modelStart,
	})
	all, err := Load(t.Context(), redis, k)
	if err != nil {
		t.Fatal(err)
	}
	if len(all.Permits) != 1 || all.Permits[y] == 0 || !slices.Contains(late.Missing, x) {
		t.Errorf("%v held, missing %q: want %s alone", all.Permits, late.Missing, y)
	}
}

// If the connection of a batch broke, the session sends the batch again without its offer. Redis
// answers even if the offer was all.
func TestAnExchangeOfNothing(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	redis.setTime(modelStart)
	s := "000000a0-0001-8010"
	join := message.Renewal{Session: s, TTLMillis: 2000, Capacity: 1, Info: "{}", NewEpoch: "e"}
	if _, err := Renew(t.Context(), redis, k, join); err != nil {
		t.Fatal(err)
	}
	got, err := Exchange(t.Context(), redis, k, message.Exchange{
		Session: s, Epoch: "e", TTLMillis: 2000, Offerer: s + "-8001",
	})
	if err != nil || got.Free != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
