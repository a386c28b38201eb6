package message

// Snapshot is the state as stored. Times are milliseconds of the scripts' clock.
type Snapshot struct {
	Now, Capacity, Limit, LimitAt int64
	LimitBy                       string
	PausedUntil                   int64             // because state was lost
	Pause                         string            // an operator's, see ParsePause; ""
	Permits                       map[string]int64  // UUID -> expiry
	Queue                         [][]string        // UUIDs of each request, first in line first
	Sessions                      map[string]int64  // session -> expiry
	Info                          map[string]string // session -> JSON
	Declared                      map[string]int64  // session -> capacity
	Held                          map[string]int64  // pool -> permits
	Quarantined                   []string          // of the permits, UUIDs
}

// An Event is an entry of the fleet's log of changes.
type Event struct{ At, Kind, Session, Owner, By, Detail string }
