package redisscript

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// says is a Redis that answers every script with one value.
type says struct {
	redis.Scripter
	value any
}

func (s says) EvalSha(ctx context.Context, _ string, _ []string, _ ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetVal(s.value)
	return cmd
}

var claimsMuch = regexp.MustCompile(`[$*]\+?\d{6}`)

// Redis may answer anything. The reader of the answer returns a value of the right shape or an
// error, and never neither.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{
		":1790000000000\r\n", // exchange: all done; capacity
		"*1\r\n$4\r\ngone\r\n",
		"*8\r\n$2\r\nok\r\n:5\r\n:7\r\n:1\r\n:0\r\n*1\r\n$1\r\na\r\n*0\r\n*0\r\n",
		"*13\r\n$2\r\nok\r\n:5\r\n$1\r\ne\r\n:3\r\n:0\r\n:1\r\n:0\r\n*1\r\n$1\r\na\r\n:0\r\n*2\r\n:0\r\n:1\r\n:1\r\n:2\r\n",
		"*2\r\n:5\r\n:1790000000000\r\n", // pause, evict
		"*3\r\n$7\r\nrefused\r\n:3\r\n:4\r\n",
		"*2\r\n$7\r\nrefused\r\n$1\r\nx\r\n",
		"*9\r\n:5\r\n:3\r\n:0\r\n:0\r\n*2\r\n$1\r\na\r\n$13\r\n1790000000000\r\n*3\r\n$6\r\n5000 a\r\n$0\r\n\r\n$1\r\nx\r\n*2\r\n$1\r\ns\r\n$1\r\n7\r\n*2\r\n$1\r\ns\r\n$2\r\n{}\r\n*2\r\n$1\r\ns\r\n$1\r\n3\r\n",
		"*9\r\n:5\r\n:3\r\n:0\r\n:0\r\n*3\r\n$1\r\na\r\n$3\r\ninf\r\n$1\r\nb\r\n*0\r\n*4\r\n$1\r\ns\r\n$4\r\n-inf\r\n$1\r\nt\r\n$3\r\nnan\r\n*1\r\n$1\r\ns\r\n*0\r\n",
		"$-1\r\n", "*0\r\n", "+OK\r\n", "*1\r\n*1\r\n*0\r\n", "*2\r\n$2\r\nok\r\n$-1\r\n", "*1\r\n$-1\r\n", ":-1\r\n", "$3\r\n1e9\r\n",
	} {
		f.Add(seed)
	}
	k := NewKeys("p-n")
	f.Fuzz(func(t *testing.T, resp string) {
		if strings.Count(resp, "*") > 50 || claimsMuch.MatchString(resp) {
			t.Skip("miniredis parses the answer, and reserves as much memory as the answer claims")
		}
		v, err := server.ParseReply(bufio.NewReader(strings.NewReader(resp)))
		if err != nil {
			t.Skip()
		}
		redis, ctx := says{value: asClient(v)}, t.Context()

		x, err := Exchange(ctx, redis, k, message.Exchange{Session: "s"})
		if err != nil && !errors.Is(err, message.ErrGone) && !strings.Contains(err.Error(), "script reply") {
			t.Errorf("exchange: %v", err)
		}
		if _, whole := redis.value.(int64); x.All != whole {
			t.Errorf("all done: %v, of %v", x.All, redis.value)
		}
		if n, err := Renew(ctx, redis, k, message.Renewal{Session: "s"}); err == nil && n.Missing == nil {
			t.Errorf("heartbeat: no list of what is missing in %v", redis.value)
		} else if refused := (message.RefusedMin{}); err != nil && !errors.As(err, &refused) && !strings.Contains(err.Error(), "script reply") {
			t.Errorf("heartbeat: %v", err)
		}
		if err := Leave(ctx, redis, k, false, 0, "s", "e", nil); err != nil {
			t.Errorf("leave: %v", err)
		}
		_, _ = SetCapacity(ctx, redis, k, 0, 3, "op")
		if _, err := CountHeld(ctx, redis, k, 0); err != nil &&
			!strings.Contains(err.Error(), "script reply") {
			t.Errorf("pause: %v", err)
		}
	})
}

// A session may ask under any name: an odd name costs its owner at most one turn. After any
// request, no more permits are held than the capacity, and the next session to ask is served.
func FuzzArguments(f *testing.F) {
	s := "000000a0-0001-8010"
	for _, seed := range []struct {
		ids, requests, pool string
		n, owed             int
	}{
		{s + "-8000-000000000001", "w 2000 " + s + "-8000-000000000002 " + s + "-8000-000000000003", s + "-8001", 1, 0},
		{"7b1c0f0e-2d3a-4c5b-8a69-0123456789ab", "s 2000 7b1c0f0e-2d3a-4c5b-8a69-0123456789ab", "7b1c0f0e-2d3a-4c5b-8a69", 2, 1},
		{"\na b\n \n  ", "t \nw \ne \ns \nw 2000\nw 2000 \nw x y\nw 2000 a a a\ns 2000 a a", "", 3, -1},
		{"min a\nfree a\n8000\n" + strings.Repeat("x", 300), "w 99999999999999999999 a\nw 0 b\ns -5 c\nw 1e300 d", strings.Repeat("-", 40), 1000, 1000},
		{"\x00\xff\n*\n%s%d\n'\"", "w 2000 \x00\ns 2000 \xff\xfe", "%", -3, 7},
	} {
		f.Add(seed.ids, seed.requests, seed.pool, seed.n, seed.owed)
	}
	k := NewKeys("p-n")
	redis := newInProcess(f, k)
	const capacity = 3
	f.Fuzz(func(t *testing.T, ids, requests, pool string, n, owed int) {
		redis.restart()
		redis.setTime(modelStart)
		ctx := t.Context()
		join := message.Renewal{Session: s, TTLMillis: 2000, Capacity: capacity, Info: ids, NewEpoch: "e"}
		joined, err := Renew(ctx, redis, k, join)
		if err != nil {
			t.Fatal(err)
		}
		x := message.Exchange{Expected: modelStart, Session: s, Epoch: joined.Epoch, TTLMillis: 2000, MaxWaiting: 20, Offered: n, Offerer: pool}
		list := strings.Split(ids, "\n")
		x.Waits, x.Release = list[:len(list)/2], list[len(list)/2:]
		for _, line := range strings.Split(requests, "\n") {
			kind, request, _ := strings.Cut(line, " ")
			x.Requests, x.Drop = append(x.Requests, message.Request{Kind: message.Kind(kind), Permits: request}), append(x.Drop, request)
		}
		for range 2 {
			_, _ = Exchange(ctx, redis, k, x) // an error is an answer, too
			x.Drop = nil
		}
		beat := join
		beat.Epoch, beat.Permits, beat.Pools = joined.Epoch, list, []message.PoolReport{{Name: pool, Held: n, Owed: owed}}
		_, _ = Renew(ctx, redis, k, beat)
		_ = Leave(ctx, redis, k, false, modelStart, pool, joined.Epoch, x.Release)
		got, err := Load(ctx, redis, k)
		if err != nil {
			t.Fatalf("the calls leave a state that cannot be read: %v", err)
		}
		if len(got.Permits) > capacity {
			t.Fatalf("%d held, the capacity is %d: %v", len(got.Permits), capacity, got.Permits)
		}
		// Some leases later the odd names are in nobody's way, unless their lease is longer. A name
		// that our clients never make can upset the count. The scripts take that for lost state,
		// and the next session to ask waits for a lease.
		join.Session = "000000b0-0002-8010"
		id := join.Session + "-8000-000000000001"
		for now := int64(modelStart + 5000); ; now += 2500 {
			redis.setTime(now)
			joined, err := Renew(ctx, redis, k, join)
			if err != nil {
				t.Fatalf("the next to join: %v", err)
			}
			join.Epoch = joined.Epoch
			next := message.Exchange{Expected: now, Session: join.Session, Epoch: joined.Epoch, TTLMillis: 2000, Waits: []string{id}}
			after, err := Exchange(ctx, redis, k, next)
			if err != nil && !errors.Is(err, message.ErrGone) {
				t.Fatalf("the next to ask: %v", err)
			}
			all, err := Load(ctx, redis, k)
			if err != nil || len(all.Permits) > capacity {
				t.Fatalf("%d held, %v", len(all.Permits), err)
			}
			if len(all.Permits) == capacity || after.All || slices.Contains(after.Granted, id) {
				break
			}
			if now > modelStart+15000 {
				t.Fatalf("%d held, and the next to ask is answered %+v", len(all.Permits), after)
			}
		}
	})
}

// An operator writes any value into any key. Scripts may refuse to go on, with an error text, but
// they grant no more than the capacity, and delete nothing that they do not know.
func FuzzState(f *testing.F) {
	type hostile struct {
		key                uint8
		kind, field, value string
		score              float64
	}
	var seeds []hostile
	for key := range uint8(len(kindsOfKeys)) {
		seeds = append(seeds, []hostile{
			{key, "string", "", "x", 0}, {key, "list", "", "x", 0}, {key, "set", "x", "", 0}, {key, "hash", "epoch", "x", 0}, {key, "hash", "x", "nan", 0},
			{key, "zset", "x", "", math.Inf(1)}, {key, "zset", "", "", math.Inf(-1)}, {key, "zset", "a b", "", -5}, {key, "zset", "5000 a b", "", 1e300},
			{key, "zset", "5000 000000a0-0001-8010-8000-000000000001", "", 0.5},
		}...)
	}
	for _, field := range []string{"cap", "gate", "seq", "limit", "count", "reserve", "skew", "last", "early", "known", "news", "lease", "leasenext", "leasesince"} {
		for _, value := range []string{"x", "", "-5", "1e300", "inf", "nan", "0x10", "99999999999999999999"} {
			seeds = append(seeds, hostile{2, "hash", field, value, 0})
		}
	}
	for _, seed := range subset.Of(f, 25, seeds) {
		f.Add(seed.key, seed.kind, seed.field, seed.value, seed.score)
	}
	k := NewKeys("p-n")
	redis := newInProcess(f, k)
	s := "000000a0-0001-8010"
	f.Fuzz(func(t *testing.T, key uint8, kind, field, value string, score float64) {
		if math.IsNaN(score) {
			t.Skip("Redis has no such score")
		}
		redis.restart()
		redis.setTime(modelStart)
		ctx, name, capacity := t.Context(), k.all[int(key)%len(k.all)], 3
		join := message.Renewal{Session: s, TTLMillis: 2000, Capacity: capacity, Info: "{}", NewEpoch: "e", Min: 1}
		joined, err := Renew(ctx, redis, k, join)
		if err != nil {
			t.Fatal(err)
		}
		join.Epoch, join.Pools = joined.Epoch, []message.PoolReport{{Name: s + "-8001", Held: 1}}
		x := message.Exchange{Expected: modelStart, Session: s, Epoch: joined.Epoch, TTLMillis: 2000, Waits: []string{s + "-8000-000000000001"},
			Requests: []message.Request{{Kind: message.Pool, Permits: message.Permits(2000, s+"-8001-000000000002")}}}
		if _, err := Exchange(ctx, redis, k, x); err != nil {
			t.Fatal(err)
		}
		if strings.IndexByte(kindsOfKeys, kindOf(kind)) < 0 || kindsOfKeys[int(key)%len(k.all)] != kindOf(kind) {
			_ = redis.do("DEL", name)
		}
		switch kind {
		case "hash":
			_ = redis.do("HSET", name, field, value)
		case "zset":
			_ = redis.do("ZADD", name, score, field)
		case "list":
			_ = redis.do("RPUSH", name, value)
		case "set":
			_ = redis.do("SADD", name, field)
		default:
			_ = redis.do("SET", name, value)
		}
		// An operator's figure for the capacity is the capacity.
		if name == k.all[2] && (field == "cap" || field == "limit") || name == k.all[5] {
			capacity = math.MaxInt
		}
		was := held(t, redis, k)
		most := max(capacity, was)
		for i := range 4 {
			x.Waits = []string{fmt.Sprintf("%s-8000-%012x", s, 10+i)}
			x.Requests = []message.Request{{Kind: message.Pool, Permits: message.Permits(2000, fmt.Sprintf("%s-8001-%012x", s, 20+i))}}
			for _, call := range []func() error{
				func() error { _, err := Exchange(ctx, redis, k, x); return err },
				func() error { y := x; y.Requests = nil; _, err := Exchange(ctx, redis, k, y); return err },
				func() error { _, err := Renew(ctx, redis, k, join); return err },
				func() error { _, err := Load(ctx, redis, k); return err },
				func() error {
					if i < 3 || capacity == math.MaxInt {
						return nil
					}
					_, err := SetCapacity(ctx, redis, k, modelStart, 2, "op")
					return err
				},
			} {
				if err := call(); err != nil && err.Error() == "" {
					t.Error("an error has no text")
				}
				if n := held(t, redis, k); n > most {
					t.Fatalf("%s %q in %s: %d are held, the capacity is %d", kind, field+"="+value, name, n, capacity)
				}
			}
		}
	})
}

func kindOf(kind string) byte {
	switch kind {
	case "zset":
		return 'z'
	case "hash":
		return 'h'
	}
	return '-'
}

// held counts the permits in Redis.
func held(t *testing.T, p place, k Keys) int {
	t.Helper()
	s, err := p.load()
	if err != nil {
		t.Fatal(err)
	}
	return len(s.Permits)
}
