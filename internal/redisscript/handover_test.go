package redisscript

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/passbuddy/passbuddy/internal/message"
)

// handover.lua does what the rest of the script would do, and leaves to it what it cannot do.
// Withdrawing a request that is not there changes nothing, but has the same batch take the rest.
func TestHandoverDoesWhatTheRestDoes(t *testing.T) {
	const (
		later = modelStart + 60_000
		a     = "000000a0-0001-8010" // the session that releases x1, and perhaps x2
		b     = "000000b0-0002-8010" // the session that waits for y, and perhaps z
		c     = "000000c0-0003-8010"
		x1    = a + "-8000-000000000001"
		x2    = a + "-8000-000000000002"
		y     = b + "-8000-000000000001"
		z     = b + "-8000-000000000002"
		cPool = c + "-8001"
	)
	both, one := []string{x1, x2}, []string{x1}
	asks := func(s string, ids ...string) message.Exchange {
		return message.Exchange{Session: s, Waits: ids}
	}
	type command []any
	for _, test := range []struct {
		name     string
		asked    []message.Exchange // while a holds x1 and x2, which is the capacity
		commands []command          // then, the first argument being the end of a key's name
		released []string
		expected int64 // Redis's clock, as a expects it
		rest     bool
		granted  []string // to a
	}{
		{name: "another waits", asked: []message.Exchange{asks(b, y)}, released: one},
		{name: "it waits itself", asked: []message.Exchange{asks(a, a+"-8000-000000000003")},
			released: one, granted: []string{a + "-8000-000000000003"}},
		{name: "more wait", asked: []message.Exchange{asks(b, y, z)}, released: one},
		{name: "fewer wait", asked: []message.Exchange{asks(b, y)}, released: both},
		{name: "one is not held", asked: []message.Exchange{asks(b, y, z)},
			released: []string{x1, a + "-8000-000000000009"}},
		{name: "none is held", asked: []message.Exchange{asks(b, y)},
			released: []string{a + "-8000-000000000009"}},
		{name: "the capacity was lowered", asked: []message.Exchange{asks(b, y)},
			commands: []command{{"meta", "HSET", "cap", 1}}, released: both, rest: true},
		{name: "... and raised", asked: []message.Exchange{asks(b, y, z)},
			commands: []command{{"meta", "HSET", "cap", 3}}, released: one},
		{name: "a permit of another client is there", asked: []message.Exchange{asks(b, y)},
			commands: []command{
				{"", "ZADD", later, "01234567-89ab-4def-8123-456789abcdef"},
				{"meta", "HSET", "cap", 3},
			}, released: one},
		{name: "a lease is over", asked: []message.Exchange{asks(b, y, z)},
			commands: []command{{"", "ZADD", modelStart - 1, x2}}, released: one, rest: true},
		{name: "a pool can give", asked: []message.Exchange{asks(b, y, z)}, commands: []command{
			{"meta", "HSET", "cap", 4}, {"meta", "HSET", "count", 4},
			{"", "ZADD", later, cPool + "-000000000001", later, cPool + "-000000000002"},
			{"held", "HSET", cPool, 2}, {"levels", "ZADD", 1, cPool},
		}, released: one, rest: true},
		{name: "a permit is promised", asked: []message.Exchange{asks(b, y)}, commands: []command{
			{"meta", "HSET", "cap", 3}, {"meta", "HSET", "count", 3},
			{"", "ZADD", later, cPool + "-000000000001"},
			{"held", "HSET", cPool, 1}, {"debts", "HSET", cPool, 1},
			{"promises", "ZADD", later, "7 " + cPool},
		}, released: one, rest: true},
		{name: "a minimum lacks", asked: []message.Exchange{asks(b, y)}, commands: []command{
			{"meta", "HSET", "reserve", 1},
			{"reserves", "HSET", "min " + c, 1, "free " + c, 1},
		}, released: one, rest: true},
		{name: "a backend is recorded", asked: []message.Exchange{asks(b, y)}, commands: []command{
			{"meta", "HSET", "fence", 1}, {"backends", "HSET", x1, "17 18 19 1"},
		}, released: one, rest: true},
		{name: "grants are paused", asked: []message.Exchange{asks(b, y)}, commands: []command{
			{"meta", "HSET", "pause", fmt.Sprintf("%d %d 0 {}", int64(modelStart), int64(later))},
		}, released: one, rest: true},
		{name: "a state was lost", asked: []message.Exchange{asks(b, y)},
			commands: []command{{"meta", "HSET", "gate", later}}, released: one, rest: true},
		{name: "permits are missing", asked: []message.Exchange{asks(b, y)},
			commands: []command{{"meta", "HSET", "count", 9}}, released: one, rest: true},
		{name: "a pool waits", asked: []message.Exchange{{Session: b, Requests: []message.Request{
			{Kind: message.Join, Permits: message.Permits(2000, b+"-8001-000000000001")},
		}}}, released: one, rest: true},
		{name: "one waits for two", asked: []message.Exchange{{Session: b, Requests: []message.Request{
			{Kind: message.Wait, Permits: message.Permits(2000, y, z)},
		}}}, released: both, rest: true},
		{name: "the session that waits is dead", asked: []message.Exchange{asks(b, y)},
			commands: []command{{"sessions", "ZADD", modelStart, b}}, released: one, rest: true},
		{name: "the clock was set", asked: []message.Exchange{asks(b, y)}, released: one,
			expected: modelStart - 1000, rest: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			run := func(drop ...string) (*state, []push, message.Exchanged) {
				k := NewKeys("p-n")
				redis := newInProcess(t, k)
				redis.setTime(modelStart)
				epoch := ""
				for _, s := range []string{a, b, c} {
					got, err := Renew(t.Context(), redis, k, message.Renewal{
						Session: s, NewEpoch: "e", TTLMillis: 2000, Capacity: 2, Info: "{}",
					})
					if err != nil {
						t.Fatal(err)
					}
					epoch = got.Epoch
				}
				exchange := func(x message.Exchange) message.Exchanged {
					t.Helper()
					x.Epoch, x.TTLMillis = epoch, 2000
					got, err := Exchange(t.Context(), redis, k, x)
					if err != nil {
						t.Fatal(err)
					}
					return got
				}
				for _, x := range append([]message.Exchange{asks(a, x1, x2)}, test.asked...) {
					x.Expected = modelStart
					exchange(x)
				}
				for _, c := range test.commands {
					key := "p-n"
					if c[0] != "" {
						key = "{p-n}:" + c[0].(string)
					}
					if err := redis.do(append([]any{c[1], key}, c[2:]...)...); err != nil {
						t.Fatal(err)
					}
				}
				_ = redis.pushed()
				x := message.Exchange{Session: a, Release: test.released, Drop: drop}
				x.Expected = cmp.Or(test.expected, modelStart)
				got := exchange(x)
				after, err := redis.load()
				if err != nil {
					t.Fatal(err)
				}
				return after, redis.pushed(), got
			}
			after, pushed, got := run()
			want, wantPushed, rest := run("2000 " + a + "-8000-00000000000f")
			if diff := after.diff(want); diff != "" {
				t.Errorf("not what the rest stores:\n%s", diff)
			}
			if !slices.Equal(pushed, wantPushed) {
				t.Errorf("pushed %q, want %q", pushed, wantPushed)
			}
			if got.All == test.rest || rest.All {
				t.Errorf("answered %+v, and %+v with the rest; all done at once: want %v", got, rest,
					!test.rest)
			}
			if got.Now != rest.Now || got.Wake != rest.Wake || got.Waiting != rest.Waiting ||
				!slices.Equal(got.Granted, rest.Granted) {
				t.Errorf("answered %+v, want what the rest answers: %+v", got, rest)
			}
			if !slices.Equal(got.Granted, test.granted) {
				t.Errorf("granted %q, want %q", got.Granted, test.granted)
			}
			if ids := slices.Sorted(maps.Keys(after.Permits)); slices.Contains(ids, test.released[0]) {
				t.Errorf("%q held, %s was released", ids, test.released[0])
			}
		})
	}
}

// A release that Redis has executed before, because its reply was lost, removes nothing. Once a
// script has written, Redis refuses it no memory. So no reply may say that there is memory again.
func TestHandoverSaysNothingOfMemory(t *testing.T) {
	const (
		a, b = "000000a0-0001-8010", "000000b0-0002-8010"
		x, y = a + "-8000-000000000001", b + "-8000-000000000001"
	)
	k := NewKeys("p-n")
	c := newRealServer(t, k).(*realServer).client
	var joined message.Renewed
	var err error
	for _, s := range []string{a, b} {
		joined, err = Renew(t.Context(), c, k, message.Renewal{
			Session: s, NewEpoch: "e", TTLMillis: 60_000, Capacity: 1, Info: "{}",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	exchange := func(x message.Exchange) message.Exchanged {
		t.Helper()
		x.Epoch, x.Expected, x.TTLMillis = joined.Epoch, joined.Now, 60_000
		got, err := Exchange(t.Context(), c, k, x)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	exchange(message.Exchange{Session: a, Waits: []string{x}})
	exchange(message.Exchange{Session: b, Waits: []string{y}})
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		released string
		waiting  int64
	}{{a + "-8000-000000000009", 1}, {x, 0}} {
		got := exchange(message.Exchange{Session: a, Release: []string{test.released}})
		if !got.All && !got.Full || got.Waiting != test.waiting {
			t.Errorf("release of %s: %+v; want %d waiting, and no word that there is memory",
				test.released, got, test.waiting)
		}
	}
}
