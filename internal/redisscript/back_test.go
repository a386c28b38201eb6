package redisscript

import (
	"fmt"
	"testing"

	"github.com/passbuddy/passbuddy/internal/message"
)

// After a loss of state, grants are paused until all sessions are back that any of them knew of.
// These tests are about who counts as back: see may_grant in state.lua.

// Redis forgets three sessions, and two newcomers join before any of the three comes back. The first
// to come back says that there were three. The newcomers are none of those. So grants are paused
// until all three are back, or have had time for a lease. It makes no difference if a hand has
// deleted the sessions, or what they tell of themselves.
func TestNewcomersBeforeTheLossIsNoticedDoNotEndThePause(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	const ttl = 2000
	session := func(n int) string { return fmt.Sprintf("000000a0-%04x-8010", n) }
	newcomer := session(4)
	var now int64
	renew := func(session, epoch string) string {
		t.Helper()
		redis.setTime(now)
		got, err := Renew(t.Context(), redis, k, message.Renewal{Session: session, Epoch: epoch,
			NewEpoch: "new", TTLMillis: ttl, Capacity: 1, Info: "{}", Sessions: 3, Expected: now})
		if err != nil {
			t.Fatal(err)
		}
		return got.Epoch
	}
	for back := 1; back <= 3; back++ {
		for _, deleted := range []string{"nothing", k.all[3], k.all[4]} {
			redis.restart()
			now = modelStart
			epoch := renew(newcomer, "")
			granted := func() bool {
				t.Helper()
				renew(newcomer, epoch)
				got, err := Exchange(t.Context(), redis, k, message.Exchange{Session: newcomer,
					Epoch: epoch, TTLMillis: ttl, Expected: now,
					Waits: []string{newcomer + "-8000-000000000001"}})
				if err != nil {
					t.Fatal(err)
				}
				return got.All || len(got.Granted) > 0
			}
			renew(session(5), "")
			_ = redis.do("DEL", deleted)
			for n := range back {
				renew(session(1+n), "old")
				renew(session(1+n), epoch)
			}
			renew(session(5), epoch)
			now += ttl / 2
			if got := granted(); got != (back == 3) {
				t.Errorf("%s deleted: granted after half a lease: %v, with %d of 3 sessions back",
					deleted, got, back)
			}
			now += ttl / 2
			if !granted() {
				t.Errorf("%s deleted: not granted after a lease, with %d of 3 sessions back",
					deleted, back)
			}
		}
	}
}

// A session makes a call of the heartbeat, and is then granted a permit. Redis loses its state, and
// executes the call only then, so it does not name the new permit. The process stops before it can
// say the rest, and goes on trusting that permit. The other two sessions come back. Grants stay
// paused for the whole lease, whatever else happens, unless the session says that it knows the new
// state.
func TestALateCallThatFindsTheLossDoesNotEndThePause(t *testing.T) {
	k := NewKeys("p-n")
	redis := newInProcess(t, k)
	const ttl, capacity = 2000, 3
	session := func(n int) string { return fmt.Sprintf("000000a0-%04x-8010", n) }
	a, b, c := session(1), session(2), session(3)
	before, after := a+"-8000-000000000001", a+"-8000-000000000002"
	var now int64
	renew := func(t *testing.T, session, epoch string, permits ...string) string {
		t.Helper()
		redis.setTime(now)
		got, err := Renew(t.Context(), redis, k, message.Renewal{Session: session, Epoch: epoch,
			NewEpoch: "new", TTLMillis: ttl, Capacity: capacity, Info: "{}", Sessions: 3,
			Expected: now, Permits: permits})
		if err != nil {
			t.Fatal(err)
		}
		return got.Epoch
	}
	for _, test := range []struct {
		name  string
		then  func(t *testing.T, epoch string)
		early bool
	}{
		{"the process stops", func(*testing.T, string) {}, false},
		{"its call is executed twice", func(t *testing.T, _ string) {
			renew(t, a, "old", before)
		}, false},
		{"the others call again", func(t *testing.T, epoch string) {
			renew(t, b, epoch)
			renew(t, c, epoch)
		}, false},
		{"somebody joins, by a call that is executed twice", func(t *testing.T, _ string) {
			renew(t, session(4), "")
			renew(t, session(4), "")
		}, false},
		{"its first call of all is executed once more", func(t *testing.T, epoch string) {
			renew(t, a, "")
		}, false},
		{"a hand deletes who is back", func(t *testing.T, epoch string) {
			_ = redis.do("DEL", k.all[4])
			renew(t, b, epoch)
			renew(t, c, epoch)
		}, false},
		{"a hand deletes the sessions", func(t *testing.T, epoch string) {
			_ = redis.do("DEL", k.all[3])
			renew(t, b, epoch)
			renew(t, c, epoch)
		}, false},
		{"it names the rest, and stops", func(t *testing.T, _ string) {
			renew(t, a, "old", before, after)
		}, false},
		{"it knows the new state", func(t *testing.T, epoch string) {
			renew(t, a, "old", before, after)
			renew(t, a, epoch, before, after)
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			redis.restart()
			now = modelStart
			epoch := renew(t, a, "old", before)
			for _, other := range []string{b, c} {
				renew(t, other, "old")
				renew(t, other, epoch)
			}
			test.then(t, epoch)
			granted := func() bool {
				t.Helper()
				redis.setTime(now)
				renew(t, b, epoch)
				got, err := Exchange(t.Context(), redis, k, message.Exchange{Session: b,
					Epoch: epoch, TTLMillis: ttl, Expected: now,
					Waits: []string{b + "-8000-000000000001"}})
				if err != nil {
					t.Fatal(err)
				}
				return got.All || len(got.Granted) > 0
			}
			now += ttl / 2
			if got := granted(); got != test.early {
				t.Errorf("granted after half a lease: %v, want %v", got, test.early)
			}
			now += ttl/2 + 1
			if !granted() {
				t.Error("not granted after a lease")
			}
		})
	}
}
