package message

import "time"

// An Observation is a semaphore.Observation, which documents it.
type Observation struct {
	Kind     ObservationKind
	Pool     string
	Duration time.Duration
	Err      error
}

// An ObservationKind is a semaphore.ObservationKind.
type ObservationKind uint8

// The kinds of observations, in the order of semaphore's.
const (
	ObservedWait ObservationKind = iota + 1
	ObservedOpen
	ObservedLoss
	ObservedDown
	ObservedUp
)
