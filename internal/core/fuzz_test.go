package core

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// No push makes a session hold a permit that it did not ask for, or trust one for longer than a
// lease. No pool is asked for less than one permit.
func FuzzPush(f *testing.F) {
	for _, seed := range []string{
		"g EPOCH 1790000000000 ID", "g EPOCH 9223372036854775807 ID",
		"g EPOCH -9223372036854775808 x", "g EPOCH x ID",
		"g e2 5 a", "g", "g EPOCH", "w POOL", "w", "w x y", "b EPOCH POOL 1 0 0", "b EPOCH POOL 9 3 50",
		"b EPOCH POOL 9223372036854775807 -9223372036854775808 -1", "b e2 POOL 1 0 0",
		"b EPOCH POOL", "b POOL t", "b x t",
		"r", "l", "h", "", " ", "\x00", "q x", "g EPOCH 1 ID ID POOL",
		"f ID 1 2", "f", "f ID", "s EPOCH ID 1 2 3 4", "s EPOCH", "s", "s e2 ID 1 2 3 4",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		s := start(t, Config{Capacity: 3})
		p := s.pool()
		p.gets(1)
		s.RecordBackend(p.permits[0], "1 2 3")
		held := s.acquire()
		p.told, s.seen = nil, Effects{}
		words := strings.NewReplacer("EPOCH", s.Epoch(), "ID", held.ID, "POOL", p.name)
		push, ok := message.ParsePush(words.Replace(payload))
		if !ok {
			t.Skip("no script sends that")
		}
		s.pass(time.Second)
		s.Pushed(s.now, push)
		s.take()
		if len(s.permits) != 2 || s.permits[held.ID] != held || p.times("granted") != 0 {
			t.Errorf("the push has an effect: held %v, the pool is told %q", s.permits, p.told)
		}
		for _, permit := range s.permits {
			if permit.TrustedUntil() > s.now+s.cfg.TTL {
				t.Errorf("trusted for %v, a lease is %v", permit.TrustedUntil()-s.now, s.cfg.TTL)
			}
		}
		if n := p.times("recall"); n > 0 && (p.owed < 1 || p.after < 0) {
			t.Errorf("recalled: %d, after %v", p.owed, p.after)
		}
		if s.pass(ttl); len(s.permits) != 0 {
			t.Error("a permit is held for longer than a lease after the push")
		}
	})
}

// Replies tie the session's clock to Redis's. Trust never counts from later than now, whatever a
// reply says.
func FuzzAnchor(f *testing.F) {
	f.Add(int64(0), int64(1790000000000), int64(1790000000100), int64(time.Second))
	f.Add(int64(math.MaxInt64), int64(math.MinInt64), int64(math.MaxInt64), int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, local, told, at, now int64) {
		a := anchor{local: time.Duration(local), redis: told}
		if got := a.bound(at, time.Duration(now)); got > time.Duration(now) {
			t.Errorf("%v, which is after %v", got, time.Duration(now))
		}
		c := Core{anchor: a}
		_ = strconv.FormatInt(c.Expected(time.Duration(now)), 10)
	})
}

// A time beyond the range of a Duration is far off, not past: a waiter that took it for past asked
// again every millisecond.
func TestUntil(t *testing.T) {
	const most = math.MaxInt64 / 1_000_000 * 1_000_000
	for _, c := range []struct {
		then, now int64
		want      time.Duration
	}{{7, 5, 2 * time.Millisecond}, {5, 7, -2 * time.Millisecond}, {1 << 53, 0, most}, {0, 1 << 53, -most}} {
		if got := Until(c.then, c.now); got != c.want {
			t.Errorf("from %d to %d: %v, want %v", c.now, c.then, got, c.want)
		}
	}
}
