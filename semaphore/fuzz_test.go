package semaphore

import (
	"context"
	"io"
	"log/slog"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// inFuzz runs a session on a miniredis of its own.
func inFuzz(f *testing.F) (*miniredis.Miniredis, *Semaphore) {
	f.Helper()
	mini := miniredis.RunT(f)
	c := redis.NewClient(&redis.Options{Addr: mini.Addr(), Protocol: 2, DisableIdentity: true})
	f.Cleanup(func() { _ = c.Close() })
	s, err := New(f.Context(), c,
		Config{Capacity: 3, TTL: time.Hour, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	return mini, s
}

// Any client can write the data about sessions in Redis. Snapshot must read it, and return texts
// that are safe to print to a terminal.
func FuzzSnapshot(f *testing.F) {
	mini, s := inFuzz(f)
	for _, seed := range []struct {
		session, info, permit, request string
		expiry                         float64
	}{
		{"000000a0-0001-8010", `{"owner":"web/7","min":2,"max":3,"weight":4}`,
			"000000a0-0001-8010-8000-000000000001", "5000 000000a0-0001-8010-8000-000000000002",
			4e12},
		{"", "", "", "", 0},
		{"x", `{"owner":"\u001b[31mred\n","min":-5,"weight":1e99}`, "short", "5000", math.Inf(1)},
		{"x", `{"owner":{},"min":"x"}`, "\x00", "x y z", math.Inf(-1)},
		{"x", `[[[[[[`, "\xff", " ", 1e300},
		{"x", "null", "a b", "1 2 3 4", -1},
		{"0", "", "0", "0", 12e12}, // further ahead than a Duration can express
	} {
		f.Add(seed.session, seed.info, seed.permit, seed.request, seed.expiry)
	}
	f.Fuzz(func(t *testing.T, session, text, permit, request string, expiry float64) {
		if math.IsNaN(expiry) {
			t.Skip("Redis has no such score")
		}
		keys := redisscript.NewKeys("passbuddy-semaphore").All()
		for _, i := range []int{0, 1, 3, 4, 5} {
			mini.Del(keys[i])
		}
		_, _ = mini.ZAdd(keys[0], expiry, permit)
		_, _ = mini.ZAdd(keys[1], expiry, request)
		_, _ = mini.ZAdd(keys[3], expiry, session)
		_, _ = mini.ZAdd(keys[5], expiry, session)
		mini.HSet(keys[4], session, text)
		got, err := s.Snapshot(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		owners := []string{}
		for _, h := range got.Holders {
			owners = append(owners, h.Owner)
			if len(h.Permits) == 0 {
				t.Error("a holder without permits")
			}
		}
		for _, w := range got.Waiters {
			owners = append(owners, w.Owner)
			if w.N < 1 {
				t.Errorf("a waiter for %d permits", w.N)
			}
		}
		for _, known := range got.Sessions {
			owners = append(owners, known.Owner)
			if known.Lease < 0 || known.Weight < 1 {
				t.Errorf("a lease below 0 or a weight below 1: %+v", known)
			}
		}
		for _, owner := range owners {
			if clean(owner) != owner {
				t.Errorf("owner %q is not safe for a terminal", owner)
			}
		}
	})
}

// A Config is either refused with the name of a field, or all its values are within bounds and stay
// unchanged.
func FuzzConfig(f *testing.F) {
	f.Add("", "", "", 0, 0, 0, 0, 0, int64(0), int64(0), 0, 0)
	f.Add("p", "n", "web", 80, 2, 5, 3, 100, int64(5*time.Second), int64(time.Second), -1, 1)
	f.Add("{p}", "\x00", "\x1b[2J", -1, -1, -1, 101, -1, int64(-1), int64(-1), math.MinInt, -1)
	f.Add(strings.Repeat("x", 500), "\xff", strings.Repeat("ä", 300), math.MaxInt, math.MaxInt, 1,
		1, math.MaxInt, int64(math.MaxInt64), int64(1), math.MaxInt, math.MaxInt)
	f.Fuzz(func(t *testing.T, prefix, name, owner string, capacity, least, most, weight,
		waiters int, ttl, retry int64, attempts, replicas int) {
		cfg := Config{Prefix: prefix, Name: name, Owner: owner, Capacity: capacity, Min: least,
			Max: most, Weight: weight, MaxWaiters: waiters,
			TTL: time.Duration(ttl), RetryInterval: time.Duration(retry), MaxAttempts: attempts,
			WaitReplicas: replicas}
		got, err := cfg.withDefaults()
		if err != nil {
			_, rest, ok := strings.Cut(err.Error(), "Config.")
			field, _, _ := strings.Cut(rest, " ")
			if _, known := reflect.TypeOf(cfg).FieldByName(field); !ok || !known {
				t.Errorf("%v names no field", err)
			}
			return
		}
		switch {
		case got.Capacity < 1, got.Min > got.Capacity, got.Max > 0 && got.Max < got.Min,
			got.Weight < 1 || got.Weight > maxWeight,
			got.TTL < minTTL || got.TTL > maxTTL, got.RetryInterval < minRetryInterval,
			got.Owner == "" && cfg.Owner == "", len(got.Owner) > maxOwnerBytes,
			!utf8.ValidString(got.Prefix + got.Name),
			strings.ContainsAny(got.Prefix+got.Name, "{}\n\x00"):
			t.Errorf("an accepted Config is out of bounds: %+v", got)
		}
		if text := got.info().Encode(); len(text) > 4*6*maxOwnerBytes+300 {
			t.Errorf("%d bytes for operators", len(text))
		}
		if again, err := got.withDefaults(); err != nil || again != got && got.Owner != "" {
			t.Errorf("with its own defaults: %+v, %v", again, err)
		}
	})
}
