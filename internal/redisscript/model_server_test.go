package redisscript

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// realServer is a Redis that the test starts. The model cannot set its clock. But the scripts'
// clock is the server's less `skew`. So before each script a setter gives skew the value with which
// the script sees the time of the model, or a few milliseconds more.
type realServer struct {
	redis.Scripter
	Reader
	t      testing.TB
	client *redis.Client
	keys   Keys
	sub    *redis.PubSub
	subbed map[string]bool
	heard  []push
	time   int64
	skew   int64 // of the model
	off    int64 // the server's time less the model's, when a script last ran
	span   int64 // ms within which that script began: a busy machine can hold up the server
	major  int
}

var setter = redis.NewScript(`
local t = redis.call('TIME')
local off = t[1] * 1000 + math.floor(t[2] / 1000) - ARGV[1]
redis.call('HSET', KEYS[3], 'skew', string.format('%.0f', off + ARGV[2]))
return off`)

func newRealServer(t testing.TB, k Keys) place {
	r, err := throwaway.StartRedis(t.Context(), throwaway.RedisOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("Redis is not installed (scripts/setup.sh --need redis): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// A script must not run twice because a machine that stalls reads its reply late.
	opts := r.Options()
	opts.ReadTimeout, opts.MaxRetries = time.Minute, -1
	p := &realServer{
		t: t, client: redis.NewClient(opts), keys: k, subbed: make(map[string]bool),
	}
	p.Reader = p.client
	t.Cleanup(func() {
		if p.sub != nil {
			_ = p.sub.Close()
		}
		_ = p.client.Close()
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range []*redis.Script{
		exchangeScript, renewScript, leaveScript, capacityScript, recordScript,
		goneScript, pauseScript, evictScript, setter,
	} {
		if err := s.Load(t.Context(), p.client).Err(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := p.client.Info(t.Context(), "server").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(info, "redis_version:")
	major, _, _ := strings.Cut(version, ".")
	if p.major, err = strconv.Atoi(major); err != nil {
		t.Fatalf("what version is %.20q?", version)
	}
	p.restart()
	return p
}

func (p *realServer) EvalSha(
	ctx context.Context, sha string, keys []string, args ...any,
) *redis.Cmd {
	pipe := p.client.Pipeline()
	off := pipe.EvalSha(ctx, setter.Hash(), keys, p.time, p.skew)
	cmd := pipe.EvalSha(ctx, sha, keys, args...)
	end := pipe.Time(ctx)
	_, _ = pipe.Exec(ctx) // each command has its own error
	p.off, _ = off.Int64()
	p.span = max(0, end.Val().UnixMilli()-p.off-p.time)
	if err := off.Err(); err != nil {
		cmd.SetErr(err)
	}
	return cmd
}

func (p *realServer) restart() {
	if err := p.client.FlushAll(p.t.Context()).Err(); err != nil {
		p.t.Fatal(err)
	}
	if p.sub != nil {
		_ = p.sub.Close()
	}
	p.sub = p.client.Subscribe(p.t.Context(), "nothing")
	if _, err := p.sub.Receive(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	p.subbed, p.heard, p.skew = make(map[string]bool), nil, 0
}

func (p *realServer) setTime(ms int64) { p.time = ms }
func (p *realServer) late() int64      { return p.span }
func (p *realServer) sharded() bool    { return p.major >= 7 }

func (p *realServer) do(args ...any) error { return p.client.Do(p.t.Context(), args...).Err() }

func (p *realServer) subscribe(session string) {
	subscribe := p.sub.Subscribe
	if p.sharded() {
		subscribe = p.sub.SSubscribe
	}
	if err := subscribe(p.t.Context(), p.keys.Channel(session)); err != nil {
		p.t.Fatal(err)
	}
	p.subbed[session] = true
	p.drain()
}

func (p *realServer) unsubscribe(session string) {
	unsubscribe := p.sub.Unsubscribe
	if p.sharded() {
		unsubscribe = p.sub.SUnsubscribe
	}
	if err := unsubscribe(p.t.Context(), p.keys.Channel(session)); err != nil {
		p.t.Fatal(err)
	}
	delete(p.subbed, session)
	p.drain()
}

func (p *realServer) listeners() (sessions []string) {
	for s := range p.subbed {
		sessions = append(sessions, s)
	}
	return sessions
}

// drain reads what was published up to now: what comes before the answer to a ping.
func (p *realServer) drain() {
	if err := p.sub.Ping(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	for {
		m, err := p.sub.Receive(p.t.Context())
		if err != nil {
			p.t.Fatal(err)
		}
		switch m := m.(type) {
		case *redis.Message:
			p.heard = append(p.heard, push{strings.TrimPrefix(m.Channel, p.keys.push), m.Payload})
		case *redis.Pong:
			return
		}
	}
}

func (p *realServer) pushed() (heard []push) {
	p.drain()
	heard, p.heard = p.heard, nil
	return heard
}

func (p *realServer) load() (*state, error) {
	pipe := p.client.Pipeline()
	ctx := p.t.Context()
	var sets [16]*redis.ZSliceCmd
	var hashes [16]*redis.MapStringStringCmd
	for i, key := range p.keys.all {
		switch kindsOfKeys[i] {
		case 'z':
			sets[i] = pipe.ZRangeWithScores(ctx, key, 0, -1)
		case 'h':
			hashes[i] = pipe.HGetAll(ctx, key)
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, err
	}
	var raw rawState
	for i := range p.keys.all {
		switch kindsOfKeys[i] {
		case 'h':
			raw.hashes[i] = hashes[i].Val()
			continue
		case 'x':
			continue
		}
		raw.sets[i] = make(map[string]float64)
		for _, z := range sets[i].Val() {
			raw.sets[i][z.Member.(string)] = z.Score
		}
	}
	s := raw.state()
	p.skew = 0
	if _, ok := s.Meta["skew"]; ok {
		p.skew = s.num("skew") - p.off
	}
	s.setSkew(p.skew)
	return s, nil
}
