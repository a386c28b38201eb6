package redisscript

import (
	"bufio"
	"bytes"
	"context"
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
)

// A place is where the scripts run, and where the model sets their clock.
type place interface {
	Reader
	redis.Scripter
	restart()             // forgets everything; no session is subscribed
	setTime(ms int64)     // what the clock shows when the next script begins
	late() int64          // ms by which the clock may run on before the script reads it
	do(args ...any) error // runs a command that is not of a session
	subscribe(session string)
	unsubscribe(session string)
	listeners() []string // the sessions that are subscribed
	pushed() []push      // all since the last time
	load() (*state, error)
	sharded() bool
}

// A rawState holds what a place has read, by the key's number.
type rawState struct {
	sets   [16]map[string]float64
	hashes [16]map[string]string
}

// kindsOfKeys says of each key, in the order of Keys, whether it is a sorted set or a hash. The model
// does not look at the stream, x.
const kindsOfKeys = "zzhzhzzhhzhhhhzx"

func (r *rawState) state() *state {
	return &state{
		Permits: whole(r.sets[0]), Queue: whole(r.sets[1]), Meta: r.hashes[2],
		Sessions: whole(r.sets[3]), Info: r.hashes[4], Capacities: whole(r.sets[5]),
		Levels: r.sets[6], Held: counts(r.hashes[7]), Debts: counts(r.hashes[8]),
		Promises: whole(r.sets[9]), Reserves: counts(r.hashes[10]), Backends: r.hashes[11],
		Quarantine: r.hashes[12], Recalls: counts(r.hashes[13]), Moves: whole(r.sets[14]),
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
			n = -1 << 40 // the oracle never expects that
		}
		out[name] = n
	}
	return out
}

// inProcess is a miniredis that is called without a connection. A million steps take minutes. Most
// of that time goes into the Lua state that miniredis makes for each script.
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
	for _, text := range []string{
		exchangeParts, renewParts, leaveParts, capacityParts, recordParts, goneParts, pauseParts,
		evictParts,
	} {
		if err := p.do("SCRIPT", "LOAD", text); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// hear notes what the scripts publish, in that order.
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

// asClient gives a reply the types that go-redis would give it.
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

func (p *inProcess) EvalSha(
	ctx context.Context, sha string, keys []string, args ...any,
) *redis.Cmd {
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

func (p *inProcess) setTime(ms int64)           { p.mini.SetTime(time.UnixMilli(ms)) }
func (p *inProcess) late() int64                { return 0 }
func (p *inProcess) do(args ...any) error       { _, err := p.dispatch(args...); return err }
func (p *inProcess) subscribe(session string)   { p.sub.Subscribe(p.keys.Channel(session)) }
func (p *inProcess) unsubscribe(session string) { p.sub.Unsubscribe(p.keys.Channel(session)) }
func (p *inProcess) sharded() bool              { return false }
func (p *inProcess) pushed() (heard []push)     { heard, p.heard = p.heard, nil; return heard }

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
			set, _ := p.mini.SortedSet(key) // an error says that it is not there
			maps.Copy(raw.sets[i], set)     // the set is miniredis's own
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
