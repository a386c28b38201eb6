// Package redisscript holds the Lua scripts of the semaphore, its key schema, and one typed
// function for each script. Only this package knows what a reply looks like; package message has
// its contents.
//
// Every script is safe to run twice with the same arguments. It decides by Redis's clock alone, and
// names all its keys, which share one Cluster slot. Scripts run by EVALSHA and fall back on EVAL,
// so the server's script cache holds as many texts as there are scripts here.
package redisscript

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/message"
)

var (
	//go:embed common.lua
	commonText string
	//go:embed repair.lua
	repairText string
	//go:embed state.lua
	stateText string
	//go:embed levels.lua
	levelsText string
	//go:embed quarantine.lua
	quarantineText string
	//go:embed queue.lua
	queueText string
	//go:embed looks.lua
	looksText string
	//go:embed recalls.lua
	recallsText string
	//go:embed sessions.lua
	sessionsText string
	//go:embed sweep.lua
	sweepText string
	//go:embed plain.lua
	plainText string
	//go:embed handover.lua
	handoverText string
	//go:embed memory.lua
	memoryText string
	//go:embed exchange.lua
	exchangeText string
	//go:embed waiting.lua
	waitingText string
	//go:embed renew.lua
	renewText string
	//go:embed leave.lua
	leaveText string
	//go:embed capacity.lua
	capacityText string
	//go:embed pause.lua
	pauseText string
	//go:embed evict.lua
	evictText string
	//go:embed record.lua
	recordText string
	//go:embed gone.lua
	goneText string

	// The texts of the scripts: their parts run in this order.
	exchangeParts = plainText + handoverText + memoryText +
		shared(exchangeText, looksText, recallsText, waitingText)
	renewParts = memoryText +
		shared(looksText, recallsText, sessionsText, sweepText, renewText)
	leaveParts    = memoryText + shared(looksText, recallsText, sessionsText, leaveText)
	capacityParts = memoryText + shared(looksText, recallsText, sessionsText, capacityText)
	pauseParts    = memoryText + shared(looksText, recallsText, sessionsText, pauseText)
	evictParts    = memoryText + shared(looksText, recallsText, sessionsText, evictText)
	goneParts     = memoryText + shared(looksText, recallsText, goneText)
	recordParts   = memoryText + shared(recordText)

	exchangeScript = redis.NewScript(exchangeParts)
	renewScript    = redis.NewScript(renewParts)
	leaveScript    = redis.NewScript(leaveParts)
	capacityScript = redis.NewScript(capacityParts)
	pauseScript    = redis.NewScript(pauseParts)
	evictScript    = redis.NewScript(evictParts)
	goneScript     = redis.NewScript(goneParts)
	recordScript   = redis.NewScript(recordParts)
)

// shared returns the shared parts, and then a script's own. Each uses what those before it define.
//
// Lua makes a script's functions anew in each run. So a script has only the parts that it needs,
// and exchange ends before the last ones where nobody waits.
//
// The parts behind common run in a function of their own. Lua searches for each variable that a
// function captures, among all captured variables of the function around it. It copies the
// variables of functions further out. Nearly every function captures names of common, and the
// search took 30 % of an exchange's instructions. Lua allows that function 60 captured variables,
// which are names of common, and 200 local ones.
func shared(own ...string) string {
	return commonText + "return (function()\n" +
		repairText + stateText + levelsText + quarantineText + queueText +
		strings.Join(own, "") + "end)()\n"
}

// Keys are the names of one semaphore's state, in the order the scripts expect.
type Keys struct {
	all  []string
	push string
}

// NewKeys names the keys of the semaphore base, "<prefix>-<name>". base must hold no braces: the
// sorted set of permits is base itself, and the hash tag {base} puts all others into its Cluster
// slot.
func NewKeys(base string) Keys {
	k := Keys{all: []string{base}, push: "{" + base + "}:push:"}
	for _, part := range []string{
		"queue", "meta", "sessions", "info", "capacities", "levels", "held", "debts", "promises",
		"reserves", "backends", "quarantine", "recalls", "moves", "events",
	} {
		k.all = append(k.all, "{"+base+"}:"+part)
	}
	return k
}

// All lists every key.
func (k Keys) All() []string { return append([]string(nil), k.all...) }

// Channel is where pushes to a session go.
func (k Keys) Channel(session string) string { return k.push + session }

// Exchange runs an exchange. It returns message.ErrGone if the session must renew first.
func Exchange(
	ctx context.Context, c redis.Scripter, k Keys, x message.Exchange,
) (message.Exchanged, error) {
	args := make([]any, 0,
		12+len(x.Release)+len(x.Waits)+len(x.Tries)+len(x.Drop)+2*len(x.Requests))
	args = append(args, x.Expected, x.Session, x.Epoch, x.TTLMillis, len(x.Release), len(x.Waits),
		len(x.Tries), x.MaxWaiting)
	for _, list := range [][]string{x.Release, x.Waits, x.Tries} {
		for _, id := range list {
			args = append(args, id)
		}
	}
	// The script's first part does not know an exchange without these.
	nothing := len(x.Release)+len(x.Waits)+len(x.Tries) == 0
	if len(x.Drop)+len(x.Requests)+x.Offered > 0 || x.MoveMicros > 0 || nothing {
		args = append(args, len(x.Drop), len(x.Requests), x.Offered, x.Offerer, x.MoveMicros)
		for _, d := range x.Drop {
			args = append(args, d)
		}
		for _, r := range x.Requests {
			args = append(args, string(r.Kind), r.Permits)
		}
	}
	v, err := runOrLoad(ctx, exchangeScript, x.Load, c, k.all, args).Result()
	if err != nil {
		return message.Exchanged{}, explain(ctx, c, k, err)
	}
	if now, plain := v.(int64); plain {
		return message.Exchanged{All: true, Now: now}, nil
	}
	r := newReply(v)
	switch r.text() {
	case "gone":
		return message.Exchanged{}, message.ErrGone
	case "served":
		out := message.Exchanged{
			All: true, Now: r.int(), Wake: r.int(), Waiting: r.int(), Granted: r.texts(),
		}
		return out, r.err
	}
	out := message.Exchanged{Now: r.int(), Wake: r.int(), Waiting: r.int()}
	if owed := tallies(r.ints()); len(owed) == 1 {
		out.Promised = owed[0]
	}
	out.Granted, out.Refused, out.Crowded = r.texts(), r.texts(), r.texts()
	out.Free, out.Full, out.NoMemory = r.int(), r.int() == 1, r.texts()
	return out, r.err
}

func tallies(list []int64) []message.Tally {
	out := make([]message.Tally, len(list)/2)
	for i := range out {
		out[i] = message.Tally{Recalled: list[2*i], Withdrawn: list[2*i+1]}
	}
	return out
}

// Renew runs a heartbeat, or has a session join. It returns a message.RefusedMin if there is no
// room for the minimum of a session that joins.
func Renew(
	ctx context.Context, c redis.Scripter, k Keys, n message.Renewal,
) (message.Renewed, error) {
	args := make([]any, 0, 16+len(n.Permits)+5*len(n.Pools))
	covered := 0
	for _, b := range n.Backends {
		if b != "" {
			covered++
		}
	}
	args = append(args, n.Expected, n.Session, n.Epoch, n.TTLMillis, n.Capacity, n.Info, n.NewEpoch,
		len(n.Permits), len(n.Pools), n.Limit, n.Min, n.Sessions, covered, n.MoveMicros,
		n.Pause, n.Report)
	for _, p := range n.Permits {
		args = append(args, p)
	}
	for _, s := range n.Pools {
		args = append(args, s.Name, s.Held, s.Owed, s.Heard.Recalled, s.Heard.Withdrawn)
	}
	for i, b := range n.Backends {
		if b != "" {
			args = append(args, i+1, b)
		}
	}
	v, err := runOrLoad(ctx, renewScript, n.Load, c, k.all, args).Result()
	if err != nil {
		return message.Renewed{}, explain(ctx, c, k, err)
	}
	r := newReply(v)
	if r.text() == "refused" {
		refused := message.RefusedMin{Others: r.int(), Capacity: r.int()}
		return message.Renewed{}, cmp.Or[error](r.err, refused)
	}
	out := message.Renewed{ // in the order of the reply
		Now: r.int(), Epoch: r.text(), Capacity: r.int(), Waiting: r.int(),
		Sharded: r.int() == 1, PausedUntil: r.int(), Missing: r.texts(), Limit: r.int(),
		Recalls: tallies(r.ints()), Min: r.int(), Sessions: r.int(),
		Quarantine: r.texts(), Subscribers: r.int(), Full: r.int() == 1, Pause: r.text(),
	}
	return out, r.err
}

// RecordBackend records the backend, "<pid> <start> <server> <n>", that a permit covers: the n-th
// record. It returns message.ErrGone if the session must renew first.
func RecordBackend(
	ctx context.Context, c redis.Scripter, k Keys,
	expected int64, session, epoch, id, backend string,
) error {
	recorded, err := recordScript.Run(ctx, c, k.all, expected, session, epoch, id, backend).Int64()
	switch {
	case err != nil:
		return fmt.Errorf("script record: %w", err)
	case recorded < 0:
		return message.ErrGone
	case recorded == 0:
		return message.ErrNotHeld
	}
	return nil
}

// Gone answers a look that was asked for in that epoch, with that time. It frees the permits whose
// backends were seen gone, except those for which another backend is recorded by now. records has
// for each permit the record that named its backend. Gone returns how many permits it has freed.
func Gone(
	ctx context.Context, c redis.Scripter, k Keys,
	expected int64, epoch string, since int64, ids, records []string,
) (freed int64, err error) {
	args := make([]any, 0, 3+2*len(ids))
	args = append(args, expected, epoch, since)
	for i, id := range ids {
		args = append(args, id, records[i])
	}
	if freed, err = goneScript.Run(ctx, c, k.all, args...).Int64(); err != nil {
		return 0, explain(ctx, c, k, err)
	}
	return freed, nil
}

// Leave ends a session and drops the requests given. expected is Redis's clock as the session
// expects it, ms: without it, a step of that clock would end the leases of all sessions. load:
// Redis is not expected to know the script.
func Leave(
	ctx context.Context, c redis.Scripter, k Keys,
	load bool, expected int64, session, epoch string, drop []string,
) error {
	args := []any{expected, session, epoch, len(drop)}
	for _, d := range drop {
		args = append(args, d)
	}
	if err := runOrLoad(ctx, leaveScript, load, c, k.all, args).Err(); err != nil {
		return explain(ctx, c, k, err)
	}
	return nil
}

// runOrLoad runs a script. load sends its text at once: one round trip where a script that Redis
// does not know costs two.
func runOrLoad(
	ctx context.Context, s *redis.Script, load bool, c redis.Scripter, keys []string, args []any,
) *redis.Cmd {
	if load {
		return s.Eval(ctx, c, keys, args...)
	}
	return s.Run(ctx, c, keys, args...)
}

// RenewHash is the digest by which go-redis calls the heartbeat's script, for tests that hold it
// back.
func RenewHash() string { return renewScript.Hash() }
