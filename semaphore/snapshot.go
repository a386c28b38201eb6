package semaphore

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// A Snapshot is the state of a semaphore at one instant, as Redis has it.
type Snapshot struct {
	Capacity         int // in force
	OperatorCapacity int // set by an operator with SetCapacity, or 0
	Held             int // permits held by anyone, other clients' included
	// Quarantined permits are among Held: their leases have expired, and they are not free before
	// their Postgres backends are gone. See passbuddy.Config.Fence.
	Quarantined int
	// GrantsPausedFor is how long nothing new is granted, because Redis lost its state; usually 0.
	GrantsPausedFor time.Duration

	// Holders are the sessions that hold permits, the largest first. Other clients' permits have
	// an empty Session.
	Holders  []Holder
	Waiters  []Waiter  // pending acquires, first in line first
	Sessions []Session // all live sessions, by owner
}

// A Holder is a session that holds permits.
type Holder struct {
	Session string
	Owner   string
	Permits []string // UUIDs
}

// A Waiter is a pending acquire.
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
	Lease    time.Duration // until it would be taken for dead
}

// Snapshot reads the state from Redis. It changes nothing, and its cost grows with the number of
// permits, waiters and sessions.
func (s *Semaphore) Snapshot(ctx context.Context) (Snapshot, error) {
	raw, err := s.engine.Snapshot(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	infos := make(map[string]info, len(raw.Info))
	for id, text := range raw.Info {
		var i info
		// If another version wrote it differently, the session has no owner here.
		_ = json.Unmarshal([]byte(text), &i)
		i.Owner = clean(i.Owner)
		infos[id] = i
	}
	out := Snapshot{
		Capacity: int(raw.Capacity), OperatorCapacity: int(raw.Limit),
		Held: len(raw.Permits), Quarantined: len(raw.Quarantined),
		GrantsPausedFor: max(0, core.Until(raw.PausedUntil, raw.Now)),
	}
	holders := make(map[string][]string)
	for id := range raw.Permits {
		session := sessionOf(id)
		if _, known := raw.Sessions[session]; !known && infos[session].Owner == "" {
			session = ""
		}
		holders[session] = append(holders[session], id)
	}
	for session, ids := range holders {
		slices.Sort(ids)
		holder := Holder{Session: session, Owner: infos[session].Owner, Permits: ids}
		out.Holders = append(out.Holders, holder)
	}
	slices.SortFunc(out.Holders, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(len(b.Permits), len(a.Permits)),
			cmp.Compare(a.Session, b.Session))
	})
	for _, ids := range raw.Queue {
		session := sessionOf(ids[0])
		waiter := Waiter{Session: session, Owner: infos[session].Owner, N: len(ids)}
		out.Waiters = append(out.Waiters, waiter)
	}
	for id, expiry := range raw.Sessions {
		out.Sessions = append(out.Sessions, Session{
			ID: id, Owner: infos[id].Owner,
			Capacity: int(raw.Declared[id]), Lease: core.Until(expiry, raw.Now),
			Min: infos[id].Min, Max: infos[id].Max, Weight: max(1, infos[id].Weight),
		})
	}
	slices.SortFunc(out.Sessions, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// sessionOf is the session that made a permit's UUID. Other clients' UUIDs name none that lives.
func sessionOf(id string) string {
	const length = 18
	if len(id) < length {
		return ""
	}
	return id[:length]
}

// info holds what operators see of a session.
type info struct {
	Owner  string `json:"owner"`
	Min    int    `json:"min,omitempty"`
	Max    int    `json:"max,omitempty"`
	Weight int    `json:"weight,omitempty"`
}

func encodeInfo(cfg Config) string {
	b, err := json.Marshal(info{Owner: cfg.Owner, Min: cfg.Min, Max: cfg.Max, Weight: cfg.Weight})
	if err != nil {
		panic("bug: an owner that JSON cannot hold: " + err.Error())
	}
	return string(b)
}
