package semaphore

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// A Snapshot is the state of a semaphore at one instant, as Redis has it.
type Snapshot struct {
	Capacity int           // in force
	Limit    int           // set by an operator with SetCapacity, or 0
	Held     int           // permits held by anyone, other clients' included
	Fencing  int           // of those: lease expired, and not free before their Postgres backends are gone; see passbuddy.Config.Fence
	Gate     time.Duration // how long nothing new is granted, because Redis lost its state; usually 0

	Holders  []Holder  // sessions that hold permits, the largest first; other clients' permits have an empty Session
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

// A Session is one live *Semaphore somewhere in the fleet.
type Session struct {
	ID       string
	Owner    string
	Capacity int           // it declares
	Min, Max int           // it declares, see Config; Max 0: any number
	Weight   int           // it declares
	Lease    time.Duration // until it would be taken for dead
}

// Snapshot reads the state from Redis. It changes nothing, and its cost grows with the number of permits, waiters and sessions.
func (s *Semaphore) Snapshot(ctx context.Context) (Snapshot, error) {
	raw, err := redisscript.Load(ctx, s.operator, s.keys)
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot of %q: %w", s.base, unavailable(err))
	}
	owners := make(map[string]string, len(raw.Info))
	infos := make(map[string]info, len(raw.Info))
	for id, text := range raw.Info {
		var i info
		_ = json.Unmarshal([]byte(text), &i) // what another version wrote differently has no owner here
		infos[id], owners[id] = i, clean(i.Owner)
	}
	out := Snapshot{
		Capacity: int(raw.Capacity), Limit: int(raw.Limit), Held: len(raw.Permits), Fencing: len(raw.Quarantined),
		Gate: max(0, until(raw.Gate, raw.Now)),
	}
	holders := make(map[string][]string)
	for id := range raw.Permits {
		session := sessionOf(id)
		if _, known := raw.Sessions[session]; !known && owners[session] == "" {
			session = ""
		}
		holders[session] = append(holders[session], id)
	}
	for session, ids := range holders {
		slices.Sort(ids)
		out.Holders = append(out.Holders, Holder{Session: session, Owner: owners[session], Permits: ids})
	}
	slices.SortFunc(out.Holders, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(len(b.Permits), len(a.Permits)), cmp.Compare(a.Session, b.Session))
	})
	for _, ids := range raw.Queue {
		session := sessionOf(ids[0])
		out.Waiters = append(out.Waiters, Waiter{Session: session, Owner: owners[session], N: len(ids)})
	}
	for id, expiry := range raw.Sessions {
		out.Sessions = append(out.Sessions, Session{
			ID: id, Owner: owners[id], Capacity: int(raw.Declared[id]), Lease: until(expiry, raw.Now),
			Min: infos[id].Min, Max: infos[id].Max, Weight: max(1, infos[id].Weight),
		})
	}
	slices.SortFunc(out.Sessions, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// until is the time from now to then, which anybody may have put further off than a Duration reaches. Both are in ms.
func until(then, now int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Millisecond)
	return time.Duration(max(-most, min(then-now, most))) * time.Millisecond
}

// sessionOf is the session that made a permit's UUID. Other clients' UUIDs name none that lives.
func sessionOf(id string) string {
	const length = 18
	if len(id) < length {
		return ""
	}
	return id[:length]
}
