// Package message defines what travels between a session and Redis: the arguments and the replies
// of the scripts as Go values, and the pushes. It knows neither how they are sent (see redisscript)
// nor what a session makes of them (see core).
//
// Times are milliseconds of Redis's clock.
package message

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrGone is the answer to a session that Redis does not know, or that knows another epoch: it must
// renew before it may ask for anything.
var ErrGone = errors.New("session is unknown to Redis, or its state was lost")

// ErrNotHeld is the answer to a record for a permit that is not held any more.
var ErrNotHeld = errors.New("the permit is not held any more")

// Plain is the fourth group of the UUID of a permit that no connection pool holds. See common.lua.
const Plain = "8000"

// Kind says how a request is granted, and what happens if it cannot be at once. The letters stand in
// ASK of common.lua, and mean nothing in pushes. For a new kind, see ARCHITECTURE.md.
type Kind string

// The kinds of requests.
const (
	Try  Kind = "t" // refused
	Hold Kind = "e" // refused: it extends what is held
	Wait Kind = "w" // queued, first come first served
	Pool Kind = "s" // queued for one permit, in the order of the pools' levels
	Join Kind = "j" // Pool, as a batch sends it for a pool that was granted nothing yet
)

// Waits reports whether a request of that kind waits in the queue.
func (k Kind) Waits() bool { return k == Wait || k == Pool || k == Join }

// Permits is a set of permits that are granted together, as the scripts read it.
func Permits(ttlMillis int64, ids ...string) string {
	return strconv.FormatInt(ttlMillis, 10) + " " + strings.Join(ids, " ")
}

// A Request asks for permits that are granted together.
type Request struct {
	Kind    Kind
	Permits string // made by Permits
}

// Exchange holds all that a session wants done in one round trip. Plain permits stand apart, one by
// one: they are the common case, and cost Redis least.
type Exchange struct {
	Expected       int64 // Redis's clock as the session expects it; 0 if it never heard of it
	Session, Epoch string
	TTLMillis      int64
	Release        []string // plain permits: UUIDs
	Waits, Tries   []string // plain permits wanted: UUIDs
	Drop           []string // made by Permits
	Requests       []Request
	Offered        int    // permits that lie idle ...
	Offerer        string // ... with this pool
	MoveMicros     int64  // what a move was measured to cost, 0: nothing new
	MaxWaiting     int    // requests the queue has a place for, 0: any number
	Load           bool   // Redis is not expected to know the script
}

// Exchanged is Redis's answer.
type Exchanged struct {
	// All: everything was done that was asked for, all that was wanted is granted, and the rest of
	// the state was not looked at, Full among it.
	All bool
	// Now is 0 if Redis did not look. Wake is when to ask again, if a request of this session is
	// left waiting; 0: unknown.
	Now, Wake int64
	Waiting   int64 // requests of anyone left in the queue
	Promised  Tally // of the pool that offers, if some of what it offered is needed; else zero
	Granted   []string
	Refused   []string // first UUIDs
	Crowded   []string // first UUIDs of requests for which the queue has no place
	Free      int64    // permits not held; if requests wait all the same, these are held back
	Full      bool     // Redis has reached maxmemory: see memory.lua
	NoMemory  []string // first UUIDs of requests that were therefore neither granted nor queued
}

// A Tally counts what a pool was ever asked to give back, and how many of those recalls were
// withdrawn since. Both only grow while a state lasts. So a pool that has heard an earlier tally
// knows what is new, however often and in what order it is told.
type Tally struct{ Recalled, Withdrawn int64 }

// PoolReport is a session's report on one of its connection pools.
type PoolReport struct {
	Name       string
	Held, Owed int   // permits it holds; of those, how many it is still to give back
	Heard      Tally // the last it has heard
}

// Renewal is a heartbeat, and how a session joins.
type Renewal struct {
	Expected       int64  // Redis's clock as the session expects it; 0 if it never heard of it
	Session, Epoch string // Epoch: what it knows, "" if nothing yet
	TTLMillis      int64
	Capacity       int
	Info           string // JSON
	NewEpoch       string // begins the name of an epoch, if there is none
	Limit          int64  // the operator's capacity it knows, 0 if none: restored if state was lost
	Min            int    // permits to be kept for the session
	Sessions       int64  // sessions there were when it last asked
	MoveMicros     int64  // what a move was measured to cost, 0: nothing new
	Permits        []string
	Backends       []string // for each permit, the record of the backend it covers, or ""
	Pools          []PoolReport
	Pause          string // the operator's that it knows, "" if none: restored if state was lost
	Report         string // what happened since the last call, for operators
	Load           bool   // Redis is not expected to know the script
}

// Renewed is Redis's answer.
type Renewed struct {
	Now         int64
	Epoch       string
	Capacity    int64 // in force
	Waiting     int64 // requests of anyone in the queue
	Sharded     bool  // pushes go by sharded pub/sub
	PausedUntil int64 // nothing new is granted before, because state was lost
	Missing     []string
	Limit       int64   // an operator's capacity, 0 if none
	Recalls     []Tally // for each pool
	// Min permits are kept for the session: fewer than it wants if the minima of all would exceed
	// the capacity.
	Min      int64
	Sessions int64 // live ones
	// Quarantine is for a session that recorded backends: "<UUID>", "<pid> <start> <until>", ...
	Quarantine []string
	// Subscribers counts the session's subscriptions at this server; -1 if unknown, or if it joins
	// only now.
	Subscribers int64
	Full        bool   // Redis has reached maxmemory: see memory.lua
	Pause       string // an operator's pause, or ""
}

// A RefusedMin refuses a session that joins with a minimum for which the others' leave no room.
type RefusedMin struct{ Others, Capacity int64 }

func (e RefusedMin) Error() string {
	return fmt.Sprintf("the minima of the other sessions are %d in sum, and the capacity is %d",
		e.Others, e.Capacity)
}
