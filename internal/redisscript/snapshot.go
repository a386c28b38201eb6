package redisscript

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/message"
)

// page is how many entries one command reads. Redis serves nobody else meanwhile.
const page = 500

// A Reader has the methods that Load needs of a Redis client.
type Reader interface {
	Time(ctx context.Context) *redis.TimeCmd
	HMGet(ctx context.Context, key string, fields ...string) *redis.SliceCmd
	ZScan(ctx context.Context, key string, cursor uint64, match string, count int64) *redis.ScanCmd
	HScan(ctx context.Context, key string, cursor uint64, match string, count int64) *redis.ScanCmd
}

// Load reads a Snapshot. It writes nothing, and runs no script. It reads in pages: what changes
// meanwhile is there in its old or its new form.
func Load(ctx context.Context, c Reader, k Keys) (message.Snapshot, error) {
	s := message.Snapshot{}
	permits, queue, meta, sessions, info := k.all[0], k.all[1], k.all[2], k.all[3], k.all[4]
	clock, err := c.Time(ctx).Result()
	if err != nil {
		return s, fmt.Errorf("read the time: %w", err)
	}
	fields, err := c.HMGet(ctx, meta, "cap", "limit", "gate", "skew", "limitat", "limitby",
		"pause").Result()
	if err != nil {
		return s, explainRead(meta, err)
	}
	texts := make([]string, 7)
	var numbers [5]int64
	for i, value := range fields {
		texts[i], _ = value.(string)
		if i < len(numbers) {
			f, err := strconv.ParseFloat(texts[i], 64)
			numbers[i] = exact(f, err)
		}
	}
	s.Capacity, s.Limit, s.PausedUntil, s.LimitAt = numbers[0], numbers[1], numbers[2], numbers[4]
	s.Now = clock.UnixMilli() - numbers[3]
	s.LimitBy, s.Pause = texts[5], texts[6]

	if s.Permits, err = scores(ctx, c, permits); err != nil {
		return s, err
	}
	places, err := scores(ctx, c, queue)
	if err != nil {
		return s, err
	}
	if s.Sessions, err = scores(ctx, c, sessions); err != nil {
		return s, err
	}
	if s.Declared, err = scores(ctx, c, k.all[5]); err != nil {
		return s, err
	}
	if s.Info, err = values(ctx, c, info); err != nil {
		return s, err
	}
	held, err := values(ctx, c, k.all[7])
	if err != nil {
		return s, err
	}
	s.Held = make(map[string]int64, len(held))
	for pool, text := range held {
		f, err := strconv.ParseFloat(text, 64)
		s.Held[pool] = exact(f, err)
	}
	quarantine, err := values(ctx, c, k.all[12])
	if err != nil {
		return s, err
	}

	for id, expiry := range s.Permits {
		if _, in := quarantine[id]; expiry <= s.Now {
			delete(s.Permits, id)
		} else if in {
			s.Quarantined = append(s.Quarantined, id)
		}
	}
	for session, expiry := range s.Sessions {
		if expiry <= s.Now {
			delete(s.Sessions, session)
		}
	}
	requests := make([]string, 0, len(places))
	for request := range places {
		requests = append(requests, request)
	}
	slices.SortFunc(requests, func(a, b string) int {
		return cmp.Or(cmp.Compare(places[a], places[b]), cmp.Compare(a, b))
	})
	for _, request := range requests {
		if words := strings.Fields(request); len(words) > 1 {
			s.Queue = append(s.Queue, words[1:])
		}
	}
	return s, nil
}

// Infos reads what sessions tell of themselves: of all of them, or of a page's worth of many. It
// also returns whether those are all.
func Infos(ctx context.Context, c Reader, k Keys) (list []string, all bool, err error) {
	key := k.all[4]
	for cursor := uint64(0); ; {
		pairs, next, err := c.HScan(ctx, key, cursor, "", page).Result()
		if err != nil {
			return nil, false, explainRead(key, err)
		}
		for i := 1; i < len(pairs); i += 2 {
			list = append(list, pairs[i])
		}
		if cursor = next; cursor == 0 || len(list) >= page {
			return list, cursor == 0, nil
		}
	}
}

// scores reads a sorted set.
func scores(ctx context.Context, c Reader, key string) (map[string]int64, error) {
	all := make(map[string]int64)
	err := scan(func(cursor uint64) ([]string, uint64, error) {
		return c.ZScan(ctx, key, cursor, "", page).Result()
	}, func(member, score string) {
		f, err := strconv.ParseFloat(score, 64)
		all[member] = exact(f, err)
	})
	return all, explainRead(key, err)
}

// values reads a hash.
func values(ctx context.Context, c Reader, key string) (map[string]string, error) {
	all := make(map[string]string)
	err := scan(func(cursor uint64) ([]string, uint64, error) {
		return c.HScan(ctx, key, cursor, "", page).Result()
	}, func(field, value string) { all[field] = value })
	return all, explainRead(key, err)
}

// scan reads pages of pairs to the end. An entry that changes meanwhile can come twice.
func scan(
	next func(cursor uint64) ([]string, uint64, error), take func(name, value string),
) error {
	for cursor := uint64(0); ; {
		pairs, after, err := next(cursor)
		if err != nil {
			return err
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			take(pairs[i], pairs[i+1])
		}
		if cursor = after; cursor == 0 {
			return nil
		}
	}
}

// exact is f as an integer. Anybody can write an infinite score, or no number at all. Within these
// bounds every integer is exact, and a sum of two does not overflow.
func exact(f float64, err error) int64 {
	if err != nil || math.IsNaN(f) {
		return 0
	}
	return int64(min(max(f, -1<<53), 1<<53))
}

func explainRead(key string, err error) error {
	if err != nil {
		return fmt.Errorf("read key %q: %w", key, err)
	}
	return nil
}

// Events reads the log, the oldest entry first.
func Events(ctx context.Context, c redis.Cmdable, k Keys) ([]message.Event, error) {
	key := k.all[15]
	entries, err := c.XRange(ctx, key, "-", "+").Result()
	if err != nil {
		return nil, explainRead(key, err)
	}
	events := make([]message.Event, len(entries))
	for i, entry := range entries {
		text := func(field string) string { s, _ := entry.Values[field].(string); return s }
		events[i] = message.Event{At: text("at"), Kind: text("kind"), Session: text("session"),
			Owner: text("owner"), By: text("by"), Detail: text("detail")}
	}
	return events, nil
}

// List returns the names of the semaphores with that prefix whose state the server c has.
func List(ctx context.Context, c redis.Cmdable, prefix string) ([]string, error) {
	before, after := "{"+prefix+"-", "}:meta"
	quoted := strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)
	var names []string
	for cursor := uint64(0); ; {
		keys, next, err := c.Scan(ctx, cursor, quoted.Replace(before)+"*"+after, 1000).Result()
		if err != nil {
			return nil, fmt.Errorf("scan the keys: %w", err)
		}
		for _, key := range keys {
			names = append(names, strings.TrimSuffix(strings.TrimPrefix(key, before), after))
		}
		if cursor = next; cursor == 0 {
			return names, nil
		}
	}
}
