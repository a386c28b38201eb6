// Package redisscript holds the Lua scripts of the semaphore, its key schema, and one typed
// function for each script. Only this package knows what a reply looks like.
//
// Every script is safe to run twice with the same arguments, decides by Redis's clock alone, and
// names all its keys, which share one Cluster slot. Scripts run by EVALSHA and fall back on EVAL, so the server's
// script cache holds as many texts as there are scripts here.
package redisscript

import (
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
	common string
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

	exchangeScript = redis.NewScript(common + exchangeText)
	renewScript    = redis.NewScript(common + renewText)
	leaveScript    = redis.NewScript(common + leaveText)
	capacityScript = redis.NewScript(common + capacityText)
	snapshotScript = redis.NewScript(common + snapshotText)
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
	for _, part := range []string{"queue", "sessions", "meta", "info", "capacities", "shares", "debts", "promises"} {
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
)

// Ask is a request and its kind.
type Ask struct {
	Kind    Kind
	Request string
}

// Exchange is what a session wants of one round trip.
type Exchange struct {
	Session, Epoch string
	TTLMillis      int64
	Drop           []string // requests, as made by Request
	Ask            []Ask
	Offered        int    // units that lie idle ...
	Offerer        string // ... with this sharer
}

// Exchanged is Redis's answer. Times are milliseconds of Redis's clock.
type Exchanged struct {
	Now, Wake int64 // Wake: when to look again if a request of this session is left waiting; 0 unknown
	Waiting   int64 // requests of anyone left in the queue
	Promised  int64 // of the units offered, how many are needed
	Granted   []string
	Refused   []string // first UUIDs
}

// Run executes the exchange. It returns ErrGone if the session must renew first.
func (x Exchange) Run(ctx context.Context, c redis.Scripter, k Keys) (Exchanged, error) {
	args := make([]any, 0, 7+len(x.Drop)+2*len(x.Ask))
	args = append(args, x.Session, x.Epoch, x.TTLMillis, len(x.Drop), len(x.Ask), x.Offered, x.Offerer)
	for _, d := range x.Drop {
		args = append(args, d)
	}
	for _, a := range x.Ask {
		args = append(args, string(a.Kind), a.Request)
	}
	r, err := run(ctx, exchangeScript, c, k, args)
	if err != nil {
		return Exchanged{}, err
	}
	if status := r.text(); status == "gone" {
		return Exchanged{}, ErrGone
	}
	out := Exchanged{Now: r.int(), Wake: r.int(), Waiting: r.int(), Promised: r.int(), Granted: r.texts(), Refused: r.texts()}
	return out, r.err
}

// Sharer is what a session reports about one of its connection pools.
type Sharer struct {
	Name       string
	Held, Owed int
}

// Renew is a heartbeat, and how a session joins.
type Renew struct {
	Session, Epoch string // Epoch: what it knows, "" if nothing yet
	TTLMillis      int64
	Capacity       int
	Info           string // JSON
	NewEpoch       string // used if there is none
	Limit          int64  // the operator's capacity it knows, 0 if none: restored if state was lost
	Permits        []string
	Sharers        []Sharer
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
	Unknown  []int64 // for each sharer: how many more it was asked to give back than it said it owes
}

// Run executes the heartbeat.
func (n Renew) Run(ctx context.Context, c redis.Scripter, k Keys) (Renewed, error) {
	args := make([]any, 0, 9+len(n.Permits)+3*len(n.Sharers))
	args = append(args, n.Session, n.Epoch, n.TTLMillis, n.Capacity, n.Info, n.NewEpoch, len(n.Permits), len(n.Sharers), n.Limit)
	for _, p := range n.Permits {
		args = append(args, p)
	}
	for _, s := range n.Sharers {
		args = append(args, s.Name, s.Held, s.Owed)
	}
	r, err := run(ctx, renewScript, c, k, args)
	if err != nil {
		return Renewed{}, err
	}
	r.text()
	out := Renewed{Now: r.int(), Epoch: r.text(), Capacity: r.int(), Waiting: r.int(), Sharded: r.int() == 1, Gate: r.int(), Missing: r.texts(), Limit: r.int(), Unknown: r.ints()}
	return out, r.err
}

// Leave ends a session and drops the requests given.
func Leave(ctx context.Context, c redis.Scripter, k Keys, session, epoch string, drop []string) error {
	args := []any{session, epoch, len(drop)}
	for _, d := range drop {
		args = append(args, d)
	}
	_, err := run(ctx, leaveScript, c, k, args)
	return err
}

// SetCapacity sets the operator's capacity, or withdraws it with 0, and returns the one in force.
func SetCapacity(ctx context.Context, c redis.Scripter, k Keys, n int) (int64, error) {
	capacity, err := capacityScript.Run(ctx, c, k.all, n).Int64()
	if err != nil {
		return 0, fmt.Errorf("script capacity: %w", err)
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
}

// Load reads a Snapshot.
func Load(ctx context.Context, c redis.Scripter, k Keys) (Snapshot, error) {
	r, err := run(ctx, snapshotScript, c, k, nil)
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
	return s, r.err
}

func run(ctx context.Context, s *redis.Script, c redis.Scripter, k Keys, args []any) (*reply, error) {
	v, err := s.Run(ctx, c, k.all, args...).Slice()
	if err != nil {
		return nil, err
	}
	return &reply{rest: v}, nil
}

// RenewHash is the digest by which the heartbeat's script is called, for tests that hold it back.
func RenewHash() string { return renewScript.Hash() }
