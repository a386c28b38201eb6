package semaphore

import "time"

// An Observer is told what happens in a session and its connection pools, as it happens. It is for
// histograms and traces; for gauges and counters, ask Stats. Observe is called on the goroutine of
// a caller or of the session. It must not block, and must not call the session or its pools. A
// checkout that need not wait is not observed, so a warm one costs nothing.
type Observer interface {
	Observe(Observation)
}

// An Observation is one thing that happened.
type Observation struct {
	Kind     ObservationKind
	Pool     string        // passbuddy.Config.PoolName; "" for what concerns the session
	Duration time.Duration // of ObservedWait and ObservedOpen
	Err      error         // why a wait or an open failed; nil if it did not
}

// An ObservationKind says what an Observation is about.
type ObservationKind uint8

// The kinds of observations. Others may be added: ignore those that you do not know.
const (
	ObservedWait ObservationKind = iota + 1 // a checkout that had to wait has ended its wait
	ObservedOpen                            // a connection was opened, or could not be
	ObservedLoss                            // a lease was lost
	ObservedDown                            // Redis stopped answering
	ObservedUp                              // Redis answers again
)
