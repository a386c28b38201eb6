package main

import "time"

// A worker is a process of the fleet: this program, started anew with a hidden command. The parent and a worker speak
// JSON, one value a line:
//
//	parent -> worker (stdin)    workerConfig; then startSignal when the whole fleet is ready
//	worker -> parent (stdout)   a workerReport when ready, then about four a second, then one that is Final
//
// SIGTERM ends a worker's run and makes it report. The end of its stdin means that the parent is gone, and ends the
// worker at once: so none outlives the parent, however that died.
const (
	workerCommand = "demo-worker"

	reportInterval = 250 * time.Millisecond
)

// workerConfig is what a worker needs to know.
type workerConfig struct {
	PostgresURL string // names the application and the size of the pool
	RedisURL    string // empty: without PassBuddy
	Semaphore   string // name of the semaphore
	Capacity    int
	Goroutines  int
	Query       string
	Scope       string
	Integration string
}

type startSignal struct{ Start bool }

// workerReport tells how far a worker is. Counts are since its start.
type workerReport struct {
	counts
	Final bool   `json:",omitempty"`
	Error string `json:",omitempty"` // why the worker could not do its work: its last report

	// Only in the final report.
	Served   int              `json:",omitempty"` // goroutines that had an operation succeed
	Failures map[string]int64 `json:",omitempty"` // other failures by their text, cut short
	Wait     []byte           `json:",omitempty"` // time to get a connection: an encoded latency
	Total    []byte           `json:",omitempty"` // time of the whole operation
}

type counts struct {
	Operations int64 // that succeeded
	Refused    int64 // that failed because Postgres had too many clients
	Failed     int64 // that failed for another reason
}

func (c *counts) add(other counts) {
	c.Operations += other.Operations
	c.Refused += other.Refused
	c.Failed += other.Failed
}

// errors is the number of operations that failed.
func (c counts) errors() int64 { return c.Refused + c.Failed }
