// Package status tells what a fleet is doing, in one document: what `passbuddy status --json`
// prints, and what the page shows. [Build] reads it, [Diagnose] says what is wrong, and with what
// command to change it.
//
// The document is a contract. Fields are added, and Version stays. A field that is renamed, removed
// or given another meaning changes Version. Times are RFC 3339. Durations are seconds, as the
// suffix _seconds says, except Process.Started. A list that is empty is [], never null.
//
// Texts that other processes wrote into Redis, and names from Postgres, have no control characters.
// They are still what others chose to write: escape them for where they are shown.
package status

import (
	"time"

	"github.com/passbuddy/passbuddy/internal/pgview"
)

// Version is that of the document.
const Version = 1

// A session declares NoCapacity if it only takes part, while others limit the fleet: `passbuddy
// run`. It is not counted as a declaration.
const NoCapacity = 1_000_000

// A Document is one fleet at one instant.
type Document struct {
	Version   int       `json:"version"`
	Semaphore string    `json:"semaphore"`
	Prefix    string    `json:"prefix"`
	At        time.Time `json:"at"` // Redis's clock

	Capacity Capacity `json:"capacity"`
	// Pause is an operator's; nil if there is none.
	Pause *Pause `json:"pause"`
	// GrantsPaused is how long nothing new is granted, because Redis lost its state.
	GrantsPaused float64 `json:"grants_paused_seconds"`

	Held              int     `json:"held"`        // permits, by anyone
	Quarantined       int     `json:"quarantined"` // of those
	InUse             int     `json:"in_use"`      // connections checked out, as pools last said
	Idle              int     `json:"idle"`        // connections in pools that nobody uses
	Waiting           int     `json:"waiting"`     // requests in the queue; a pool has one at a time
	Callers           int     `json:"callers"`     // that wait in pools
	OldestWaitSeconds float64 `json:"oldest_wait_seconds"`
	Timeouts          int64   `json:"timeouts"` // of callers, since their pools were made
	// RecentTimeouts are those of the last RecentSeconds. Both are 0 unless the fleet was seen
	// before: see Options.
	RecentTimeouts int64   `json:"recent_timeouts"`
	RecentSeconds  float64 `json:"recent_seconds"`
	// Read is how long it took to read this from Redis.
	Read float64 `json:"read_seconds"`

	Processes []Process `json:"processes"` // by owner
	Waiters   []Waiter  `json:"waiters"`   // first in line first
	Events    []Event   `json:"events"`    // the oldest first
	// Others are permits of clients that are no sessions: the original PassBuddy's.
	Others int `json:"others"`

	// Postgres is nil if it was not asked, or did not answer: then PostgresError says why.
	Postgres      *View  `json:"postgres"`
	PostgresError string `json:"postgres_error,omitempty"`
	// RedisError is why Redis could not be asked. Then all but Postgres and Findings is empty.
	RedisError string `json:"redis_error,omitempty"`

	Findings []Finding `json:"findings"` // what is wrong, the worst first
}

// A View holds the backends that were seen in Postgres, and a Group some of them.
type (
	View  = pgview.View
	Group = pgview.Group
)

// Capacity is how many permits the fleet may hold together, and why.
type Capacity struct {
	InForce  int        `json:"in_force"` // 0: none is
	Operator int        `json:"operator"` // set by an operator, or 0
	SetBy    string     `json:"set_by"`
	SetAt    *time.Time `json:"set_at"`
	Declared []Declared `json:"declared"` // the smallest first: without an operator's it is in force
	Mismatch bool       `json:"mismatch"` // not all sessions declare the same
}

// Declared is how many sessions declare a capacity.
type Declared struct {
	Capacity int `json:"capacity"`
	Sessions int `json:"sessions"`
}

// A Pause is an operator's.
type Pause struct {
	By     string     `json:"by"`
	Reason string     `json:"reason"`
	Since  time.Time  `json:"since"`
	Until  *time.Time `json:"until"` // nil: until an operator resumes
	Drain  bool       `json:"drain"`
}

// A Process is one live session. A program that opens two semaphores has two.
type Process struct {
	Session  string    `json:"session"`
	Owner    string    `json:"owner"`
	Host     string    `json:"host"`
	PID      int       `json:"pid"`
	Program  string    `json:"program"`
	Version  string    `json:"version"` // of PassBuddy
	Started  time.Time `json:"started"` // by its host's clock
	Capacity int       `json:"capacity"`
	Min      int       `json:"min"`
	Max      int       `json:"max"` // 0: any number
	Weight   int       `json:"weight"`
	Permits  int       `json:"permits"`
	// Due is its part of the capacity in force, by weight and within Min and Max, among the
	// processes that hold or want permits. 0 for one that does neither.
	Due    float64 `json:"due"`
	Queued int     `json:"queued"`        // requests in the queue
	TTL    float64 `json:"ttl_seconds"`   // the length of its leases
	Lease  float64 `json:"lease_seconds"` // until it would be taken for dead
	// WaitReplicas is how many replicas of Redis must acknowledge what it is granted.
	WaitReplicas int `json:"wait_replicas"`
	Opening      int `json:"opening"`
	Closing      int `json:"closing"`

	// It said the rest with its last heartbeat, Age ago.
	Age        float64 `json:"age_seconds"`
	InUse      int     `json:"in_use"`
	Idle       int     `json:"idle"`
	Waiting    int     `json:"waiting"` // callers
	OldestWait float64 `json:"oldest_wait_seconds"`
	OldestUse  float64 `json:"oldest_use_seconds"`
	LongUse    int     `json:"long_use"` // connections in use for a minute or longer
	Hijacked   int     `json:"hijacked"` // connections in use that were taken out of their pool
	Timeouts   int64   `json:"timeouts"`
	// RecentTimeouts are those of Document.RecentSeconds.
	RecentTimeouts int64   `json:"recent_timeouts"`
	RoundTrip      float64 `json:"round_trip_seconds"` // what Redis's replies take
	Lost           int64   `json:"lost"`               // leases
	Outages        int64   `json:"outages"`            // how often Redis stopped answering
	Pools          []Pool  `json:"pools"`
}

// A Pool is one of a process's.
type Pool struct {
	Name       string  `json:"name"`
	Permits    int     `json:"permits"`
	InUse      int     `json:"in_use"`
	Idle       int     `json:"idle"`
	Opening    int     `json:"opening"`
	Closing    int     `json:"closing"`
	Waiting    int     `json:"waiting"`
	OldestWait float64 `json:"oldest_wait_seconds"`
	OldestUse  float64 `json:"oldest_use_seconds"`
	NewestUse  float64 `json:"newest_use_seconds"`
	LongUse    int     `json:"long_use"`
	Hijacked   int     `json:"hijacked"`
	Timeouts   int64   `json:"timeouts"`
	Recalled   int64   `json:"recalled"`
	Failed     int64   `json:"failed"` // connections that could not be opened
}

// A Waiter is a request in the queue.
type Waiter struct {
	Session string `json:"session"`
	Owner   string `json:"owner"`
	N       int    `json:"n"`    // permits it wants together
	Pool    string `json:"pool"` // the pool of that session in which callers wait, if it is one
}

// An Event is an entry of the fleet's log: see semaphore.EventKind for the kinds.
type Event struct {
	At      time.Time `json:"at"`
	Kind    string    `json:"kind"`
	Session string    `json:"session"`
	Owner   string    `json:"owner"`
	By      string    `json:"by"`
	Detail  string    `json:"detail"`
}

// A Finding is a fault, a risk, or a fact worth knowing.
type Finding struct {
	Severity string `json:"severity"` // Critical, Warning or Info
	// Code is the kind of finding, for scripts. Others may be added.
	Code string `json:"code"`
	Text string `json:"text"` // what, and whose
	// Command changes it, and Effect says how; "" where no command does.
	Command string `json:"command"`
	Effect  string `json:"effect"`
}

// The severities. Critical: callers fail or wait in vain, or soon will. Warning: a set-up or a
// process needs a change. Info: a fact to know, which needs none.
const (
	Critical = "critical"
	Warning  = "warning"
	Info     = "info"
)
