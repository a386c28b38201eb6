// Package fleet runs a number of worker processes that share one Postgres, and tells what they met.
//
// A worker is the program itself, started anew with [WorkerCommand]: its main must call [RunWorker] then. The parent and a
// worker speak JSON, one value a line:
//
//	parent -> worker (stdin)    Config; then a startSignal when the whole fleet is ready
//	worker -> parent (stdout)   a Report when ready, then about four a second, then one that is Final
//
// SIGTERM ends a worker's run, if it has not ended by itself, and makes it report. The end of its stdin means that the parent is gone, and ends the
// worker at once: so none outlives the parent, however that died.
package fleet

import "time"

const (
	// WorkerCommand is the hidden command of a worker.
	WorkerCommand = "fleet-worker"
	// ReportInterval is how often a worker says how far it is.
	ReportInterval = 250 * time.Millisecond
)

// Values of Config.Integration and Config.Scope.
const (
	Pgxpool         = "pgxpool"
	SQL             = "sql"
	ScopeConnection = "connection"
	ScopeCheckout   = "checkout"
)

// A Guard is what keeps the fleet under its cap.
type Guard string

const (
	Unguarded Guard = ""          // nothing but the size of the worker's pool
	PassBuddy Guard = "passbuddy" // permits of a semaphore, in Config.Scope
	Original  Guard = "original"  // the algorithm of PassBuddy 1.0.2 for Node, at each checkout
)

// Config is what a worker needs to know.
type Config struct {
	PostgresURL string // names the application
	MaxConns    int    // of the worker's pool
	Goroutines  int
	Operation   Operation
	Integration string

	Guard     Guard
	RedisURL  string // for a Guard
	Semaphore string // its name
	Capacity  int
	Scope     string // of PassBuddy

	// Drain is how long operations under way at the end may take to end by themselves.
	Drain time.Duration
	// Closing is how long closing the pool may take after that; what is still open then ends with the process. 0 is for
	// as long as it takes.
	Closing time.Duration
}

// Operation is what a goroutine repeats. One field is set.
type Operation struct {
	// Exec is a statement whose rows are of no interest.
	Exec string `json:",omitempty"`
	// Row is a query for one number.
	Row string `json:",omitempty"`
	// Transaction is statements with one row each, which is one number. Their only parameter is a number from 1 to
	// TransactionKeys, the same for all of a transaction.
	Transaction []string `json:",omitempty"`
}

// TransactionKeys is from how many rows a transaction picks its own.
const TransactionKeys = 10_000

// startSignal begins the run. With Until, only what ends in between counts, and the run is over then: so the
// workers' counts are of the same time, by the clock that they share.
type startSignal struct{ From, Until time.Time }

// Report tells how far a worker is. Counts are since the start of what counts.
type Report struct {
	Counts
	Final bool   `json:",omitempty"`
	Error string `json:",omitempty"` // why the worker could not do its work: its last report

	// Only in the final report.
	Served   int              `json:",omitempty"` // goroutines that had an operation succeed
	Failures map[string]int64 `json:",omitempty"` // other failures by their text, cut short
	Wait     []byte           `json:",omitempty"` // time to get a connection: an encoded Latency
	Total    []byte           `json:",omitempty"` // time of the whole operation
	Progress Progress         // of a run with an end
}

// Counts are operations by how they went.
type Counts struct {
	Operations int64 // that succeeded
	Refused    int64 // that failed because Postgres had too many clients
	Failed     int64 // that failed for another reason
}

// Add adds other's.
func (c *Counts) Add(other Counts) {
	c.Operations += other.Operations
	c.Refused += other.Refused
	c.Failed += other.Failed
}

// Errors is the number of operations that failed.
func (c Counts) Errors() int64 { return c.Refused + c.Failed }
