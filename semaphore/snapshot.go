package semaphore

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// A Snapshot is the state of a semaphore, as Redis has it.
type Snapshot struct {
	At               time.Time // by the clock that decides on leases: Redis's
	Capacity         int       // in force
	OperatorCapacity int       // set by an operator with SetCapacity, or 0
	CapacitySetBy    string    // that operator; the owner of a session, or Inspector.Operator
	CapacitySetAt    time.Time // zero if no operator has set it
	Held             int       // permits held by anyone, other clients' included
	// Quarantined permits are among Held: their leases have expired, or an operator has revoked
	// them, and they are not free before their Postgres backends are gone. See
	// passbuddy.Config.Fence.
	Quarantined int
	// GrantsPausedFor is how long nothing new is granted, because Redis lost its state; usually 0.
	GrantsPausedFor time.Duration
	// Pause is an operator's; nil if there is none.
	Pause *Pause

	// Holders are the sessions that hold permits, the largest first. Other clients' permits have
	// an empty Session.
	Holders  []Holder
	Waiters  []Waiter  // pending acquires, first in line first
	Sessions []Session // all live sessions, by owner
}

// A Pause is an operator's: see [Inspector.Pause].
type Pause struct {
	By, Reason string
	Since      time.Time
	Until      time.Time // zero: until Resume
	Drain      bool      // all permits are recalled, too
}

// A Holder is a session that holds permits.
type Holder struct {
	Session string
	Owner   string
	Permits []string // UUIDs
}

// A Waiter is a pending acquire. A connection pool has one at a time, whatever its callers.
type Waiter struct {
	Session string
	Owner   string
	N       int // permits it wants together
}

// A Session is one live *Semaphore of the fleet.
type Session struct {
	ID       string
	Owner    string
	Capacity int           // it declares
	Min, Max int           // it declares, see Config; Max 0: any number
	Weight   int           // it declares
	TTL      time.Duration // the length of its leases; 0: unknown
	// WaitReplicas is how many replicas it waits for: see Config.
	WaitReplicas int
	Lease        time.Duration // until it would be taken for dead

	Host    string
	PID     int
	Program string
	Version string    // of this library, as the program was built; "" or "(devel)": unknown
	Started time.Time // the session, by its host's clock

	Held    int // permits
	Waiting int // pending acquires

	// The session said the rest with its last heartbeat, Age ago.
	Age       time.Duration
	RoundTrip time.Duration // what Redis's replies take
	Lost      int64         // leases lost
	Outages   int64         // how often Redis stopped answering
	// Pools are those that are open, as in Stats: 16 at most, of which the last then stands for all
	// others.
	Pools []PoolStats
}

// Snapshot reads the state from Redis. It writes nothing, and its cost grows with the number of
// permits, waiters and sessions. It reads in pages, so that no command keeps Redis from the fleet:
// what changes meanwhile is there in its old or its new form.
func (s *Semaphore) Snapshot(ctx context.Context) (Snapshot, error) {
	raw, err := s.engine.Snapshot(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	return newSnapshot(raw), nil
}

func newSnapshot(raw message.Snapshot) Snapshot {
	infos := make(map[string]message.SessionInfo, len(raw.Info))
	for id, text := range raw.Info {
		infos[id] = message.ParseInfo(text)
	}
	owner := func(session string) string { return clean(infos[session].Owner) }
	out := Snapshot{
		At: time.UnixMilli(raw.Now), Capacity: int(raw.Capacity), OperatorCapacity: int(raw.Limit),
		Held: len(raw.Permits), Quarantined: len(raw.Quarantined),
		GrantsPausedFor: max(0, core.Until(raw.PausedUntil, raw.Now)),
	}
	if raw.Limit > 0 {
		out.CapacitySetBy = clean(raw.LimitBy)
		if raw.LimitAt > 0 {
			out.CapacitySetAt = time.UnixMilli(raw.LimitAt)
		}
	}
	if p, ok := message.ParsePause(raw.Pause); ok && p.Until > raw.Now {
		out.Pause = &Pause{By: clean(p.By), Reason: clean(p.Reason),
			Since: time.UnixMilli(p.Since), Drain: p.Drain}
		if p.Until < message.Forever {
			out.Pause.Until = time.UnixMilli(p.Until)
		}
	}
	holders := make(map[string][]string)
	for id := range raw.Permits {
		session := sessionOf(id)
		if _, known := raw.Sessions[session]; !known && owner(session) == "" {
			session = ""
		}
		holders[session] = append(holders[session], id)
	}
	for session, ids := range holders {
		slices.Sort(ids)
		holder := Holder{Session: session, Owner: owner(session), Permits: ids}
		out.Holders = append(out.Holders, holder)
	}
	slices.SortFunc(out.Holders, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(len(b.Permits), len(a.Permits)),
			cmp.Compare(a.Session, b.Session))
	})
	waiting := make(map[string]int)
	for _, ids := range raw.Queue {
		session := sessionOf(ids[0])
		waiting[session]++
		waiter := Waiter{Session: session, Owner: owner(session), N: len(ids)}
		out.Waiters = append(out.Waiters, waiter)
	}
	for id, expiry := range raw.Sessions {
		out.Sessions = append(out.Sessions, newSession(id, infos[id], raw, expiry,
			len(holders[id]), waiting[id]))
	}
	slices.SortFunc(out.Sessions, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.ID, b.ID))
	})
	return out
}

func newSession(
	id string, info message.SessionInfo, raw message.Snapshot, expiry int64, held, waiting int,
) Session {
	s := Session{
		ID: id, Owner: clean(info.Owner), Capacity: int(raw.Declared[id]),
		Min: info.Min, Max: info.Max, Weight: max(1, info.Weight),
		TTL: time.Duration(info.TTL) * time.Millisecond, Lease: core.Until(expiry, raw.Now),
		Host: clean(info.Host), PID: info.PID, Program: clean(info.Program),
		Version: clean(info.Version), Held: held, Waiting: waiting,
		RoundTrip: info.RoundTrip, Lost: info.Lost, Outages: info.Outages,
		Pools: poolStats(info.Pools), WaitReplicas: min(max(info.WaitReplicas, 0), maxReplicas),
	}
	s.TTL = min(max(s.TTL, 0), maxTTL)
	if info.Started > 0 {
		s.Started = time.Unix(info.Started, 0)
	}
	if s.TTL > 0 {
		s.Age = max(0, s.TTL-s.Lease)
	}
	for i := range s.Pools {
		s.Pools[i].Name = clean(s.Pools[i].Name)
	}
	return s
}

// sessionOf is the session that made a permit's UUID. Other clients' UUIDs name none that lives.
func sessionOf(id string) string {
	const length = 18
	if len(id) < length {
		return ""
	}
	return id[:length]
}
