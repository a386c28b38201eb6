// Package redisscript holds the Lua scripts of the semaphore, its key schema, and one typed
// function for each script. Only this package knows what a reply looks like.
//
// Every script is safe to run twice with the same arguments, decides by Redis's clock alone, and
// names all its keys, which share one Cluster slot. Scripts run by EVALSHA and fall back on EVAL, so the server's
// script cache holds as many texts as there are scripts here.
package redisscript

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
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
	//go:embed recalls.lua
	recallsText string
	//go:embed plain.lua
	plain string
	//go:embed exchange.lua
	exchangeText string
	//go:embed renew.lua
	renewText string
	//go:embed leave.lua
	leaveText string
	//go:embed capacity.lua
	capacityText string
	//go:embed snapshot.lua
	snapshotText string
	//go:embed mark.lua
	markText string
	//go:embed memory.lua
	memoryText string
	//go:embed gone.lua
	goneText string

	// The shared parts: each uses what those before it define.
	common = commonText + opening + repairText + stateText + levelsText + quarantineText + queueText +
		recallsText

	exchangeScript = redis.NewScript(plain + memoryText + common + exchangeText + closing)
	renewScript    = redis.NewScript(memoryText + common + renewText + closing)
	leaveScript    = redis.NewScript(memoryText + common + leaveText + closing)
	capacityScript = redis.NewScript(memoryText + common + capacityText + closing)
	snapshotScript = redis.NewScript(common + snapshotText + closing)
	markScript     = redis.NewScript(memoryText + common + markText + closing)
	goneScript     = redis.NewScript(memoryText + common + goneText + closing)
)

// The parts behind common run in a function of their own. Lua makes a script's functions anew in
// each run. It searches for each variable that a function captures, among all captured variables of
// the function around it; variables of functions further out it copies. Nearly every function
// captures names of common, and the search took 30 % of an exchange's instructions. Lua allows that
// function 60 captured variables, which are names of common, and 200 local ones.
const (
	opening = "return (function()\n"
	closing = "end)()\n"
)

// ErrGone is returned by Exchange to a session that Redis does not know, or that knows another epoch:
// it must renew before it may ask for anything.
var ErrGone = errors.New("session is unknown to Redis, or its state was lost")

// Plain is the fourth group of the UUID of a permit that no connection pool holds. See common.lua.
const Plain = "8000"

// Keys are the names of one semaphore's state, in the order the scripts expect.
type Keys struct {
	all  []string
	push string
}

// NewKeys names the keys of the semaphore base, "<prefix>-<name>". base must hold no braces: the sorted
// set of permits is base itself, and the hash tag {base} puts all others into its Cluster slot.
func NewKeys(base string) Keys {
	k := Keys{all: []string{base}, push: "{" + base + "}:push:"}
	for _, part := range []string{"queue", "meta", "sessions", "info", "capacities", "shares", "held", "debts", "promises", "reserves",
		"backends", "quarantine", "recalls", "moves"} {
		k.all = append(k.all, "{"+base+"}:"+part)
	}
	return k
}

// All lists every key.
func (k Keys) All() []string { return append([]string(nil), k.all...) }

// Channel is where pushes to a session go.
func (k Keys) Channel(session string) string { return k.push + session }

// Request is a set of permits that are granted together.
func Request(ttlMillis int64, ids ...string) string {
	return strconv.FormatInt(ttlMillis, 10) + " " + strings.Join(ids, " ")
}

// Kind says what happens to a request that cannot be granted at once.
type Kind string

// The kinds of requests.
const (
	Try   Kind = "t" // refused
	Hold  Kind = "e" // refused: it extends what is held
	Wait  Kind = "w" // queued, first come first served
	Share Kind = "s" // queued for one permit, in the order of the shares
	Join  Kind = "j" // Share, for a pool that was granted nothing yet
)

// Ask is a request and its kind.
type Ask struct {
	Kind    Kind
	Request string
}

// Exchange is what a session wants of one round trip. Plain permits, each for itself, are named apart: they are the common case,
// and cost Redis least.
type Exchange struct {
	Expected       int64 // Redis's clock as the session expects it, ms; 0 if it never heard of it
	Session, Epoch string
	TTLMillis      int64
	Release        []string // plain permits: UUIDs
	Waits, Tries   []string // plain permits wanted: UUIDs
	Drop           []string // requests, as made by Request
	Ask            []Ask
	Offered        int    // units that lie idle ...
	Offerer        string // ... with this sharer
	MoveMicros     int64  // what a move was measured to cost, 0: nothing new
	MostWaiting    int    // requests the queue has a place for, 0: any number
	Load           bool   // Redis is not expected to know the script
}

// Exchanged is Redis's answer. Times are milliseconds of Redis's clock.
type Exchanged struct {
	All       bool  // everything was done: all that was wanted is granted, and nobody waits
	Now, Wake int64 // Now: 0 if Redis did not look; Wake: when to look again if a request of this session is left waiting; 0 unknown
	Waiting   int64 // requests of anyone left in the queue
	Promised  Tally // of the sharer that offers, if some of what it offered is needed; else zero
	Granted   []string
	Refused   []string // first UUIDs
	Crowded   []string // first UUIDs of requests for which the queue has no place
	Free      int64    // permits held by nobody, though somebody may wait: those are held back
	Full      bool     // Redis has reached maxmemory: see memory.lua
	NoMemory  []string // first UUIDs of requests that were therefore neither granted nor queued
}

// Run executes the exchange. It returns ErrGone if the session must renew first.
func (x Exchange) Run(ctx context.Context, c redis.Scripter, k Keys) (Exchanged, error) {
	args := make([]any, 0, 12+len(x.Release)+len(x.Waits)+len(x.Tries)+len(x.Drop)+2*len(x.Ask))
	args = append(args, x.Expected, x.Session, x.Epoch, x.TTLMillis, len(x.Release), len(x.Waits), len(x.Tries), x.MostWaiting)
	for _, list := range [][]string{x.Release, x.Waits, x.Tries} {
		for _, id := range list {
			args = append(args, id)
		}
	}
	if len(x.Drop)+len(x.Ask)+x.Offered > 0 || x.MoveMicros > 0 {
		args = append(args, len(x.Drop), len(x.Ask), x.Offered, x.Offerer, x.MoveMicros)
		for _, d := range x.Drop {
			args = append(args, d)
		}
		for _, a := range x.Ask {
			args = append(args, string(a.Kind), a.Request)
		}
	}
	v, err := runOrLoad(ctx, exchangeScript, x.Load, c, k.all, args).Result()
	if err != nil {
		return Exchanged{}, explain(ctx, c, k, err)
	}
	if now, plain := v.(int64); plain {
		return Exchanged{All: true, Now: now}, nil
	}
	r := newReply(v)
	if status := r.text(); status == "gone" {
		return Exchanged{}, ErrGone
	}
	out := Exchanged{Now: r.int(), Wake: r.int(), Waiting: r.int()}
	if owed := tallies(r.ints()); len(owed) == 1 {
		out.Promised = owed[0]
	}
	out.Granted, out.Refused, out.Crowded = r.texts(), r.texts(), r.texts()
	out.Free, out.Full, out.NoMemory = r.int(), r.int() == 1, r.texts()
	return out, r.err
}

// A Tally counts what a sharer was ever asked to give back, and how many of those recalls were withdrawn since. Both only grow while a
// state lasts, so whoever has heard an earlier one knows what is new, however often and in what order it is told.
type Tally struct{ Recalled, Withdrawn int64 }

func tallies(list []int64) []Tally {
	out := make([]Tally, len(list)/2)
	for i := range out {
		out[i] = Tally{list[2*i], list[2*i+1]}
	}
	return out
}

// Sharer is what a session reports about one of its connection pools.
type Sharer struct {
	Name       string
	Held, Owed int   // permits it holds; of those, how many it is still to give back
	Heard      Tally // the last it has heard
}

// Renew is a heartbeat, and how a session joins.
type Renew struct {
	Expected       int64  // Redis's clock as the session expects it, ms; 0 if it never heard of it
	Session, Epoch string // Epoch: what it knows, "" if nothing yet
	TTLMillis      int64
	Capacity       int
	Info           string // JSON
	NewEpoch       string // used if there is none
	Limit          int64  // the operator's capacity it knows, 0 if none: restored if state was lost
	Min            int    // permits to be kept for the session
	Roster         int64  // sessions there were when it last asked
	MoveMicros     int64  // what a move was measured to cost, 0: nothing new
	Permits        []string
	Backends       []string // for each permit, the backend it covers, as for Mark, or ""
	Sharers        []Sharer
	Load           bool // Redis is not expected to know the script
}

// Renewed is Redis's answer. Times are milliseconds of Redis's clock.
type Renewed struct {
	Now      int64
	Epoch    string
	Capacity int64 // in force
	Waiting  int64 // requests of anyone in the queue
	Sharded  bool  // pushes go by sharded pub/sub
	Gate     int64 // nothing new is granted before, because state was lost
	Missing  []string
	Limit    int64   // an operator's capacity, 0 if none
	Recalls  []Tally // for each sharer
	Min      int64   // permits kept for the session: less than it wants if the minima of all would be more than the capacity
	Roster   int64   // live sessions

	// Quarantine is for a session that recorded backends: "<UUID>", "<pid> <start> <until>", ...
	Quarantine []string

	// Listeners are the session's subscriptions at this server; -1 if unknown, or if it joins only
	// now.
	Listeners int64

	Full bool // Redis has reached maxmemory: see memory.lua
}

// A RefusedMin refuses a session that joins with a minimum for which the others' leave no room.
type RefusedMin struct{ Others, Capacity int64 }

func (e RefusedMin) Error() string {
	return fmt.Sprintf("the minima of the other sessions are %d in sum, and the capacity is %d", e.Others, e.Capacity)
}

// Run executes the heartbeat.
func (n Renew) Run(ctx context.Context, c redis.Scripter, k Keys) (Renewed, error) {
	args := make([]any, 0, 14+len(n.Permits)+5*len(n.Sharers))
	covered := 0
	for _, b := range n.Backends {
		if b != "" {
			covered++
		}
	}
	args = append(args, n.Expected, n.Session, n.Epoch, n.TTLMillis, n.Capacity, n.Info, n.NewEpoch, len(n.Permits), len(n.Sharers), n.Limit,
		n.Min, n.Roster, covered, n.MoveMicros)
	for _, p := range n.Permits {
		args = append(args, p)
	}
	for _, s := range n.Sharers {
		args = append(args, s.Name, s.Held, s.Owed, s.Heard.Recalled, s.Heard.Withdrawn)
	}
	for i, b := range n.Backends {
		if b != "" {
			args = append(args, i+1, b)
		}
	}
	v, err := runOrLoad(ctx, renewScript, n.Load, c, k.all, args).Result()
	if err != nil {
		return Renewed{}, explain(ctx, c, k, err)
	}
	r := newReply(v)
	if r.text() == "refused" {
		refused := RefusedMin{Others: r.int(), Capacity: r.int()}
		return Renewed{}, cmp.Or[error](r.err, refused)
	}
	out := Renewed{Now: r.int(), Epoch: r.text(), Capacity: r.int(), Waiting: r.int(), Sharded: r.int() == 1, Gate: r.int(),
		Missing: r.texts(), Limit: r.int(), Recalls: tallies(r.ints()), Min: r.int(), Roster: r.int(),
		Quarantine: r.texts(), Listeners: r.int(), Full: r.int() == 1}
	return out, r.err
}

// ErrNotHeld is returned by Mark for a permit that is not held any more.
var ErrNotHeld = errors.New("the permit is not held any more")

// Mark records the backend, "<pid> <start> <server> <n>", that a permit covers: the n-th record. It
// returns ErrGone if the session must renew first.
func Mark(ctx context.Context, c redis.Scripter, k Keys, expected int64, session, epoch, id, backend string) error {
	marked, err := markScript.Run(ctx, c, k.all, expected, session, epoch, id, backend).Int64()
	switch {
	case err != nil:
		return fmt.Errorf("script mark: %w", err)
	case marked < 0:
		return ErrGone
	case marked == 0:
		return ErrNotHeld
	}
	return nil
}

// Gone frees those permits whose backend was seen gone, unless another backend is recorded for them
// by now. records holds for each the record that named its backend. It returns how many are free by
// that.
func Gone(ctx context.Context, c redis.Scripter, k Keys, expected int64, epoch string, ids, records []string) (freed int64, err error) {
	args := make([]any, 0, 2+2*len(ids))
	args = append(args, expected, epoch)
	for i, id := range ids {
		args = append(args, id, records[i])
	}
	if freed, err = goneScript.Run(ctx, c, k.all, args...).Int64(); err != nil {
		return 0, explain(ctx, c, k, err)
	}
	return freed, nil
}

// Leave ends a session and drops the requests given. expected is Redis's clock as the session expects it, ms: without it, a clock that
// was set would end the leases of all. load: Redis is not expected to know the script.
func Leave(ctx context.Context, c redis.Scripter, k Keys, load bool, expected int64, session, epoch string, drop []string) error {
	args := []any{expected, session, epoch, len(drop)}
	for _, d := range drop {
		args = append(args, d)
	}
	if err := runOrLoad(ctx, leaveScript, load, c, k.all, args).Err(); err != nil {
		return explain(ctx, c, k, err)
	}
	return nil
}

// SetCapacity sets the operator's capacity, or withdraws it with 0, and returns the one in force. expected is as for Leave.
func SetCapacity(ctx context.Context, c redis.Scripter, k Keys, expected int64, n int) (int64, error) {
	capacity, err := capacityScript.Run(ctx, c, k.all, expected, n).Int64()
	if err != nil {
		return 0, fmt.Errorf("script capacity: %w", explain(ctx, c, k, err))
	}
	return capacity, nil
}

// Snapshot is the state as stored. Times are milliseconds of Redis's clock.
type Snapshot struct {
	Now, Capacity, Limit, Gate int64
	Permits                    map[string]int64  // UUID -> expiry
	Queue                      [][]string        // UUIDs of each request, first in line first
	Sessions                   map[string]int64  // session -> expiry
	Info                       map[string]string // session -> JSON
	Declared                   map[string]int64  // session -> capacity
	Quarantined                []string          // of the permits, UUIDs
}

// Load reads a Snapshot.
func Load(ctx context.Context, c redis.Scripter, k Keys) (Snapshot, error) {
	r, err := run(ctx, snapshotScript, c, k, []any{0})
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{Now: r.int(), Capacity: r.int(), Limit: r.int(), Gate: r.int(), Permits: r.scores()}
	for _, request := range r.texts() {
		if fields := strings.Fields(request); len(fields) > 1 {
			s.Queue = append(s.Queue, fields[1:])
		}
	}
	s.Sessions = r.scores()
	info := r.texts()
	s.Info = make(map[string]string, len(info)/2)
	for i := 0; i+1 < len(info); i += 2 {
		s.Info[info[i]] = info[i+1]
	}
	s.Declared = r.scores()
	for _, id := range r.texts() {
		if _, counted := s.Permits[id]; counted {
			s.Quarantined = append(s.Quarantined, id)
		}
	}
	return s, r.err
}

// runOrLoad runs a script. load sends its text at once: one round trip where a script that Redis does not
// know costs two.
func runOrLoad(ctx context.Context, s *redis.Script, load bool, c redis.Scripter, keys []string, args []any) *redis.Cmd {
	if load {
		return s.Eval(ctx, c, keys, args...)
	}
	return s.Run(ctx, c, keys, args...)
}

func run(ctx context.Context, s *redis.Script, c redis.Scripter, k Keys, args []any) (*reply, error) {
	v, err := s.Run(ctx, c, k.all, args...).Result()
	if err != nil {
		return nil, explain(ctx, c, k, err)
	}
	return newReply(v), nil
}

// RenewHash is the digest by which the heartbeat's script is called, for tests that hold it back.
func RenewHash() string { return renewScript.Hash() }
