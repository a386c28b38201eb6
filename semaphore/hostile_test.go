package semaphore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

var allHostile = flag.Bool("hostile", false, "try every hostile value, not one of each kind")

// A hostile is a value that an application, or an operator, puts where our state should be.
type hostile struct {
	key     string
	command string // the command that puts it there
	args    []any
	fresh   bool // the former value is deleted first
	every   bool // args is a score for every existing member
}

func (h hostile) String() string {
	s := fmt.Sprintf("%s %s %.60q", h.command, h.key, fmt.Sprint(h.args...))
	if h.every {
		s += " every"
	}
	return strings.NewReplacer("/", "|", " ", "_").Replace(s)
}

func (h hostile) put(t *testing.T, c redis.UniversalClient) {
	t.Helper()
	if h.fresh {
		if err := c.Del(t.Context(), h.key).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if h.every {
		score := h.args[0]
		h.args = nil
		for _, member := range c.ZRange(t.Context(), h.key, 0, -1).Val() {
			h.args = append(h.args, score, member)
		}
		if h.args == nil {
			t.Skip("the key has no members")
		}
	}
	if err := c.Do(t.Context(), append([]any{h.command, h.key}, h.args...)...).Err(); err != nil {
		t.Fatal(err)
	}
}

// misplaced is a key of another type.
func misplaced(key, command string, args ...any) hostile {
	return hostile{key: key, command: command, args: args, fresh: true}
}

// hostiles lists values to put into the state of the semaphore of the given name.
func hostiles(base string, every bool) (all []hostile) {
	keys := redisscript.NewKeys(base).All()
	sets := []int{0, 1, 3, 5, 6, 9, 14}
	scores := []string{"+inf", "-inf", "1e300", "-1e300", "0", "0.5", "-7", "9007199254740993"}
	counts := []string{"1e300", "text", "", "inf", "-inf", "nan", "-5", "99999999999999999999",
		"1.5", "1 2", "1 2 99999999999999999999"}
	metas := append(counts, "-1e300", "9000000000000")
	if !every {
		scores, counts, metas = scores[:1], counts[:1], counts[:2]
	}
	for i, key := range keys {
		all = append(all, misplaced(key, "SET", "text"))
		if every {
			all = append(all, misplaced(key, "RPUSH", "a", "list"), misplaced(key, "SADD", "a set"))
		}
		if slices.Contains(sets, i) {
			all = append(all, misplaced(key, "HSET", "a", "hash"))
			// Legal, if odd: another client's UUID, no dashes, spaces, nothing, the form of our own
			// requests, bytes.
			members := []any{"7b1c0f0e-2d3a-4c5b-8a69-0123456789ab", "nodashes", "with some spaces",
				"", "5000 x", "99999999999999999999 a", "\x00\xff", "min x"}
			for _, score := range scores {
				var args []any
				for _, m := range members {
					args = append(args, score, m)
				}
				all = append(all, hostile{key: key, command: "ZADD", args: args},
					hostile{key: key, command: "ZADD", args: []any{score}, every: true})
			}
			continue
		}
		all = append(all, misplaced(key, "ZADD", 5, "a sorted set"))
		if strings.HasSuffix(key, ":events") {
			// Entries of another client, and one with the last of all ids: no other can follow it.
			const last = "18446744073709551615-18446744073709551615"
			all = append(all, misplaced(key, "HSET", "a", "hash"),
				hostile{key: key, command: "XADD", args: []any{last, "event", "joined"}})
			for _, value := range metas {
				all = append(all, hostile{key: key, command: "XADD",
					args: []any{"*", "event", value, "at", value, "", value, "session", value}})
			}
			continue
		}
		for _, value := range counts {
			all = append(all,
				hostile{key: key, command: "HSET", args: []any{"", value, "field", value, "min x",
					value, "free x", value, "x-8001", value}})
		}
	}
	for _, field := range []string{"epoch", "seq", "cap", "limit", "gate", "early", "known", "news",
		"count", "reserve", "skew", "last", "move", "turn", "calm", "calm0", "young", "young0"} {
		for _, value := range metas {
			all = append(all, hostile{key: keys[2], command: "HSET", args: []any{field, value}})
		}
	}
	return all
}

// A siege is a fleet that goes on while a hostile value is put into its state. Nothing may panic,
// hang, or grant more than the capacity, and every error must say what is wrong. Once the broken
// keys are deleted, the fleet works again.
type siege struct {
	t      *testing.T
	a, b   *Semaphore
	redis  redis.UniversalClient
	join   func(Config) (*Semaphore, error)
	cfg    Config
	target []*Permit     // all permits that are or may be held
	slack  time.Duration // how much longer an operation may take on a machine that stalls

	misplaced string // the key of the wrong type, if any
	named     bool   // an error named it
	unnamed   error  // an error that did not name it
}

const siegeCapacity = 4

func (g *siege) run(h hostile) {
	t := g.t
	var err error
	if g.a, err = g.join(g.cfg); err != nil {
		t.Fatal(err)
	}
	g.cfg.Min = 0
	if g.b, err = g.join(g.cfg); err != nil {
		t.Fatal(err)
	}
	connPool := &pool{}
	connPool.Obey = true
	if err := connPool.join(g.b); err != nil {
		t.Fatal(err)
	}
	connPool.Ask(1)
	for _, s := range []*Semaphore{g.a, g.b} {
		p, err := g.patiently(s)
		if err != nil {
			t.Fatal(err)
		}
		g.target = append(g.target, p)
	}

	was := g.redis.Type(t.Context(), h.key).Val()
	h.put(t, g.redis)
	if is := g.redis.Type(t.Context(), h.key).Val(); h.fresh && is != was {
		g.misplaced = h.key
	}
	g.everything(connPool)
	time.Sleep(g.cfg.TTL + g.cfg.TTL/2) // heartbeats find the value, and a lease may end
	g.count(connPool)
	g.everything(connPool)

	// An operator follows the error: it deletes the keys that are not our state.
	if g.unnamed != nil && !g.named {
		t.Errorf("no error names the key: %v", g.unnamed)
	}
	if g.misplaced != "" {
		g.redis.Del(t.Context(), g.misplaced)
		g.misplaced = ""
	}
	time.Sleep(3 * g.cfg.TTL)
	g.count(connPool)
	for _, p := range g.target {
		_ = p.Release(t.Context())
	}
	connPool.GiveBack()
	time.Sleep(g.cfg.TTL)
	// Foreign members may stay for good, but nothing else may block grants.
	snap, err := g.a.Snapshot(t.Context())
	if err != nil {
		t.Fatalf("after the repair: %v", err)
	}
	others := 0
	for _, holder := range snap.Holders {
		if holder.Session == "" {
			others += len(holder.Permits)
		}
	}
	if others < snap.Capacity {
		if _, err := g.patiently(g.b); err != nil {
			t.Fatalf("after the repair: %v\n%+v", err, snap)
		}
	}
	g.bounded("close", func(context.Context) error { return g.b.Close() })
	g.bounded("close", func(context.Context) error { return g.a.Close() })
}

// patiently acquires a permit. In real time it tries again, because a machine that stalls can miss
// MaxAttempts times RetryInterval, or lose a lease of a second at once.
func (g *siege) patiently(s *Semaphore) (p *Permit, err error) {
	tries := 1
	if g.slack > 0 {
		tries = 20
	}
	for range tries {
		if p, err = s.Acquire(g.t.Context()); err == nil {
			if p.Held() {
				return p, nil
			}
			err = errors.New("the permit is not held")
		}
	}
	return nil, err
}

// everything runs every operation. Each must end in time, and every error must say why it failed.
func (g *siege) everything(connPool *pool) {
	keep := func(p *Permit, err error) error {
		if err == nil {
			g.target = append(g.target, p)
		}
		return err
	}
	for _, s := range []*Semaphore{g.a, g.b} {
		g.bounded("TryAcquire", func(ctx context.Context) error { return keep(s.TryAcquire(ctx)) })
		g.bounded("Acquire", func(ctx context.Context) error { return keep(s.Acquire(ctx)) })
		g.bounded("AcquireN", func(ctx context.Context) error {
			permits, err := s.AcquireN(ctx, 2)
			g.target = append(g.target, permits...)
			return err
		})
		g.bounded("Snapshot", func(ctx context.Context) error {
			_, err := s.Snapshot(ctx)
			return err
		})
	}
	connPool.Ask(2)
	connPool.Offer(1)
	g.bounded("extend", g.target[0].Acquire)
	g.count(connPool)
	g.bounded("release", g.target[len(g.target)-1].Release)
	g.bounded("SetCapacity", func(ctx context.Context) error {
		return g.a.SetCapacity(ctx, siegeCapacity)
	})
	g.bounded("join and leave", func(context.Context) error {
		c, err := g.join(g.cfg)
		if err != nil {
			return err
		}
		return errors.Join(keep(c.TryAcquire(context.Background())), c.Close())
	})
	g.count(connPool)
}

// bounded runs one operation.
func (g *siege) bounded(name string, do func(context.Context) error) {
	g.t.Helper()
	began := time.Now()
	err := do(g.t.Context())
	if took := time.Since(began); took > 2*time.Duration(g.cfg.MaxAttempts)*g.cfg.RetryInterval+
		g.cfg.TTL+4*time.Second+g.slack {
		g.t.Errorf("%s took %v", name, took)
	}
	if err == nil {
		return
	}
	if g.misplaced != "" && strings.Contains(err.Error(), "WRONGTYPE") {
		if strings.Contains(err.Error(), g.misplaced) {
			g.named = true
		} else {
			g.unnamed = err // naming the key takes one more query, which may fail on a slow machine
		}
	}
	for _, known := range []error{ErrCapacity, ErrUnavailable, ErrLost} {
		if errors.Is(err, known) {
			return
		}
	}
	g.t.Errorf("%s: %v, which matches nothing", name, err)
}

// count checks that the sessions hold no more permits than the capacity.
func (g *siege) count(connPool *pool) {
	g.t.Helper()
	held := 0
	for _, p := range g.target {
		if p.Held() {
			held++
		}
	}
	for _, p := range connPool.Permits() {
		if p.Held() {
			held++
		}
	}
	if held > siegeCapacity {
		g.t.Errorf("%d permits are held, the capacity is %d", held, siegeCapacity)
	}
}

func TestHostileValues(t *testing.T) {
	for _, h := range subset.Of(t, 8, hostiles("passbuddy-semaphore", *allHostile)) {
		t.Run(h.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				c, _ := w.Client()
				defer c.Close()
				g := &siege{t: t, redis: c,
					cfg: Config{Capacity: siegeCapacity, Min: 1, TTL: time.Second,
						RetryInterval: 100 * time.Millisecond}}
				g.join = func(cfg Config) (*Semaphore, error) {
					cfg.Logger = slog.New(slog.DiscardHandler)
					c, l := w.Client()
					s, err := New(context.Background(), c, cfg)
					if err == nil {
						t.Cleanup(func() { (&session{s, l, c}).crash() })
					}
					return s, err
				}
				g.run(h)
			})
		})
	}
}

// The same on a real server, which has error texts of its own.
func TestHostileValuesOnRedis(t *testing.T) {
	t.Parallel() // the sieges mostly wait
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("Redis is not installed (scripts/setup.sh --need redis): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	c := redis.NewClient(r.Options())
	t.Cleanup(func() { _ = c.Close() })
	all := slices.DeleteFunc(hostiles("passbuddy-siege", *allHostile), func(h hostile) bool {
		return !h.fresh && !*allHostile
	})
	for i, h := range subset.Of(t, 6, all) {
		name := fmt.Sprintf("siege%d", i)
		h.key = strings.Replace(h.key, "siege", name, 1)
		t.Run(h.String(), func(t *testing.T) {
			t.Parallel()
			g := &siege{t: t, redis: c, slack: time.Minute,
				cfg: Config{Name: name, Capacity: siegeCapacity, Min: 1, TTL: time.Second,
					RetryInterval: 50 * time.Millisecond}}
			g.join = func(cfg Config) (*Semaphore, error) {
				cfg.Logger = slog.New(slog.DiscardHandler)
				return New(context.Background(), c, cfg)
			}
			g.run(h)
		})
	}
}
