package redisscript

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// A place is where the scripts run, and where their clock can be set.
type place interface {
	Reader
	redis.Scripter
	restart()              // everything is forgotten, nobody is subscribed
	setTime(ms int64)      // what the clock shows at the next script, or a little later: see late
	late() int64           // ms by which the clock may have gone on when a script reads it
	do(args ...any) error  // a command of somebody else
	listen(session string) // subscribes a session to its pushes
	deafen(session string)
	listeners() []string
	pushed() []push // all since it was asked last
	load() (*state, error)
	sharded() bool
}

// rawState is what both places read a state from.
type rawState struct {
	sets   [16]map[string]float64
	hashes [16]map[string]string
}

// The kinds of keys, in the order of Keys. The model does not look at the stream, x.
const kindsOfKeys = "zzhzhzzhhzhhhhzx"

func (r *rawState) state() *state {
	return &state{
		Permits: whole(r.sets[0]), Queue: whole(r.sets[1]), Meta: r.hashes[2], Sessions: whole(r.sets[3]), Info: r.hashes[4],
		Capacities: whole(r.sets[5]), Shares: r.sets[6], Held: counts(r.hashes[7]), Debts: counts(r.hashes[8]),
		Promises: whole(r.sets[9]), Reserves: counts(r.hashes[10]), Backends: r.hashes[11], Quarantine: r.hashes[12],
		Recalls: counts(r.hashes[13]), Moves: whole(r.sets[14]),
	}
}

func whole(scores map[string]float64) map[string]int64 {
	out := make(map[string]int64, len(scores))
	for name, score := range scores {
		out[name] = int64(score)
	}
	return out
}

func counts(fields map[string]string) map[string]int64 {
	out := make(map[string]int64, len(fields))
	for name, text := range fields {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			n = -1 << 40 // nothing that the oracle expects
		}
		out[name] = n
	}
	return out
}

var allScripts = []*redis.Script{exchangeScript, renewScript, leaveScript, capacityScript, recordScript, goneScript,
	pauseScript, evictScript}

// inProcess is a miniredis that is called without a connection, for a million steps in minutes. Most of what a step takes is miniredis making
// a Lua state for it.
type inProcess struct {
	redis.Scripter
	mini  *miniredis.Miniredis
	keys  Keys
	buf   bytes.Buffer
	peer  *server.Peer
	sub   *miniredis.Subscriber
	heard []push
}

func newInProcess(t testing.TB, k Keys) place {
	p := &inProcess{mini: miniredis.NewMiniRedis(), keys: k}
	c, err := p.mini.Dial()
	if err != nil {
		t.Fatal(err)
	}
	p.peer = server.NewPeer(bufio.NewWriter(&p.buf))
	p.sub = p.mini.NewSubscriber()
	p.mini.Server().SetPreHook(p.hear)
	t.Cleanup(func() {
		p.sub.Close()
		_ = c.Close()
		p.mini.Close()
	})
	for _, text := range []string{plain + memoryText + common + exchangeText, memoryText + common + renewText, memoryText + common + leaveText,
		memoryText + common + capacityText, memoryText + common + recordText,
		memoryText + common + goneText, memoryText + common + pauseText, memoryText + common + evictText} {
		if err := p.do("SCRIPT", "LOAD", text+closing); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// hear takes what is published, in order.
func (p *inProcess) hear(c *server.Peer, cmd string, args ...string) bool {
	if cmd != "PUBLISH" {
		return false
	}
	p.heard = append(p.heard, push{strings.TrimPrefix(args[0], p.keys.push), args[1]})
	heard := 0
	if slices.Contains(p.sub.Channels(), args[0]) {
		heard = 1
	}
	c.WriteInt(heard)
	return true
}

func (p *inProcess) dispatch(args ...any) (any, error) {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = fmt.Sprint(a)
	}
	p.buf.Reset()
	p.mini.Server().Dispatch(p.peer, words)
	p.peer.Flush()
	v, err := server.ParseReply(bufio.NewReader(&p.buf))
	return asClient(v), err
}

// asClient gives a reply the types that go-redis would.
func asClient(v any) any {
	switch v := v.(type) {
	case int:
		return int64(v)
	case []byte:
		return string(v)
	case server.Simple:
		return string(v)
	case []any:
		for i := range v {
			v[i] = asClient(v[i])
		}
	}
	return v
}

func (p *inProcess) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	words := []any{"EVALSHA", sha, len(keys)}
	for _, k := range keys {
		words = append(words, k)
	}
	v, err := p.dispatch(append(words, args...)...)
	if err != nil {
		cmd.SetErr(err)
	} else {
		cmd.SetVal(v)
	}
	return cmd
}

func (p *inProcess) restart() {
	p.mini.FlushAll()
	for _, c := range p.sub.Channels() {
		p.sub.Unsubscribe(c)
	}
	p.heard = nil
}

func (p *inProcess) setTime(ms int64)       { p.mini.SetTime(time.UnixMilli(ms)) }
func (p *inProcess) late() int64            { return 0 }
func (p *inProcess) do(args ...any) error   { _, err := p.dispatch(args...); return err }
func (p *inProcess) listen(session string)  { p.sub.Subscribe(p.keys.Channel(session)) }
func (p *inProcess) deafen(session string)  { p.sub.Unsubscribe(p.keys.Channel(session)) }
func (p *inProcess) sharded() bool          { return false }
func (p *inProcess) pushed() (heard []push) { heard, p.heard = p.heard, nil; return heard }

func (p *inProcess) listeners() (sessions []string) {
	for _, c := range p.sub.Channels() {
		sessions = append(sessions, strings.TrimPrefix(c, p.keys.push))
	}
	return sessions
}

func (p *inProcess) load() (*state, error) {
	var raw rawState
	for i, key := range p.keys.all {
		if kindsOfKeys[i] == 'z' {
			raw.sets[i] = make(map[string]float64)
			set, _ := p.mini.SortedSet(key) // an error is that it is not there
			maps.Copy(raw.sets[i], set)     // for it is miniredis's own
			continue
		}
		if kindsOfKeys[i] == 'x' {
			continue
		}
		raw.hashes[i] = make(map[string]string)
		fields, _ := p.mini.HKeys(key)
		for _, f := range fields {
			raw.hashes[i][f] = p.mini.HGet(key, f)
		}
	}
	s := raw.state()
	s.setSkew(s.num("skew"))
	return s, nil
}

// realServer is a Redis of its own. Its clock cannot be set; but the scripts' clock is the server's less `skew`, so before each script a
// setter gives skew the value by which they see the time of the model. It may have gone on by a few milliseconds then.
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
	p := &realServer{t: t, client: redis.NewClient(r.Options()), keys: k, subbed: make(map[string]bool)}
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
	for _, s := range append(allScripts, setter) {
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

func (p *realServer) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	pipe := p.client.Pipeline()
	off := pipe.EvalSha(ctx, setter.Hash(), keys, p.time, p.skew)
	cmd := pipe.EvalSha(ctx, sha, keys, args...)
	_, _ = pipe.Exec(ctx) // each command has its own error
	p.off, _ = off.Int64()
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
func (p *realServer) late() int64      { return 20 }
func (p *realServer) sharded() bool    { return p.major >= 7 }

func (p *realServer) do(args ...any) error { return p.client.Do(p.t.Context(), args...).Err() }

func (p *realServer) listen(session string) {
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

func (p *realServer) deafen(session string) {
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

// drain reads what was published up to now: all that comes before the answer to a ping.
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
