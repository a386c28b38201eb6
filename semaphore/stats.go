package semaphore

import (
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// PoolStats are the figures of one connection pool at one instant. passbuddy.Stats and
// pgxpool.Stats return them, and each session tells Redis them with its heartbeat, for [Snapshot].
// Counters count since the pool was made.
type PoolStats struct {
	// Name is passbuddy.Config.PoolName.
	Name string

	// Permits is how many the pool owns: one for each connection that is open, being opened or
	// being closed, and those that it is about to use or to give back. With passbuddy.PerCheckout
	// idle connections have none. Nor have those that live on while Redis cannot be asked: see
	// passbuddy.Config.KeepOnLoss and FallbackConns.
	Permits int
	InUse   int // connections that are checked out
	Idle    int // with pgxpool.NewHooks it is not known: 0
	Opening int
	// Closing are closed here, but the Postgres backend may still be there. In pgxpool with
	// passbuddy.PerCheckout, only those count that were closed while they were checked out.
	Closing int

	// Waiting are callers that wait for a connection now: for their turn, or for a permit. Those
	// that database/sql keeps waiting for its SetMaxOpenConns are not among them.
	Waiting    int
	OldestWait time.Duration // how long the first of those has waited
	// OldestUse is how long the connection that was checked out first has been in use. The pool
	// looks when it is asked, and at each heartbeat. So the figure can be short by a third of a
	// lease, and is 0 for a checkout that no two looks have met.
	OldestUse time.Duration
	// NewestUse is likewise how long the connection that was checked out last has been in use.
	NewestUse time.Duration
	// LongUse is how many of InUse have been in use for a minute or longer, as OldestUse knows it.
	LongUse int
	// Hijacked is how many of InUse were taken out of their pool for good, by pgxpool's Hijack.
	// With pgxpool.NewHooks, and where several open pools share one configuration, it is not
	// known: 0.
	Hijacked int

	// Waits are checkouts that had to wait, however that ended. A checkout counts once, even if it
	// waits for its turn and then for its permit.
	Waits    int64
	WaitTime time.Duration // the sum of their waits
	Timeouts int64         // of those, ended by their deadline or by AcquireTimeout
	Canceled int64         // of those, ended by their context, or because the pool was closed
	// Unavailable are those that were refused while Redis could not be asked. They are not among
	// Timeouts and Canceled.
	Unavailable int64

	Opened int64 // connections
	// OpenTime is the sum of what opening them took, once the permit was there. It includes
	// the pool's AfterConnect, and the work of passbuddy.Config.Fence.
	OpenTime time.Duration
	Failed   int64 // connections that could not be opened, although the permit was there
	Recalled int64 // permits that the fleet asked back, even if it had no need of them then
	Lost     int64 // leases lost
}

// Stats are the figures of one session at one instant, as this process knows them. To ask for them
// costs no round trip. Counters count since New.
type Stats struct {
	Owner   string // Config.Owner
	Version string // of this library, as the program was built; "" or "(devel)": unknown

	Capacity int  // in force, as last heard
	Held     int  // permits held by this session
	Waiting  int  // requests of this session that are not granted yet
	Up       bool // Redis answered the last call
	// Paused is whether grants are paused, by an operator or after a loss of state, as last heard.
	Paused bool

	Heartbeats int64         // round trips of the heartbeat
	Requests   int64         // round trips that asked for permits, or released some
	RoundTrip  time.Duration // what replies take: the longest, forgotten little by little
	Lost       int64         // leases lost
	Outages    int64         // how often Redis stopped answering
	// Fenced is how many backends of expired leases this session has ended: see
	// passbuddy.Config.Fence.
	Fenced int64

	// Pools are all that are open, by name. Of pgx's pools, which tell nobody that they are closed,
	// one is listed until the garbage collector has taken it.
	Pools []PoolStats
}

// Stats returns the session's figures.
func (s *Semaphore) Stats() Stats {
	raw := s.engine.Stats()
	return Stats{
		Owner: s.cfg.Owner, Version: version(),
		Capacity: raw.Capacity, Held: raw.Held, Waiting: raw.Waiting, Up: raw.Up,
		Paused: raw.Paused, Heartbeats: raw.Heartbeats, Requests: raw.Requests,
		RoundTrip: raw.RoundTrip, Lost: raw.Lost, Outages: raw.Outages, Fenced: raw.Fenced,
		Pools: poolStats(raw.Pools),
	}
}

func poolStats(list []message.PoolFigures) (out []PoolStats) {
	for _, p := range list {
		out = append(out, PoolStats(p))
	}
	return out
}
