// Package fleet runs a number of worker processes that share one Postgres, and tells what they met.
//
// A worker is the program itself, started anew with [WorkerCommand]: its main must call [RunWorker] then. The parent and a
// worker speak JSON, one value a line:
//
//	parent -> worker (stdin)    Config; then a Span when the whole fleet is ready
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

	// Load is how operations arrive. The zero value is a closed loop without pauses: each goroutine
	// repeats the operation.
	Load Load
	// Graceful makes a worker that is told to end before its span is over finish what is under way,
	// callers that wait for a connection included, for as long as Drain allows. What is still under
	// way then counts as failed.
	Graceful bool

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

// Load says how operations arrive at a worker: in an open loop with a Rate, else in a closed one.
type Load struct {
	// Pause is the mean of an exponential pause of each goroutine before each operation: a closed
	// loop with pauses.
	Pause time.Duration `json:",omitempty"`
	// Rate is how many operations arrive per second, as a Poisson process: an open loop. No arrival
	// waits for an earlier one, and latencies count from when the operation was to start.
	// Config.Goroutines is of no interest then.
	Rate float64 `json:",omitempty"`
	// Ramp is how long the rate of an open loop takes to grow from 0 to Rate.
	Ramp time.Duration `json:",omitempty"`
	// MaxOutstanding bounds the operations of an open loop that have arrived and not ended. An
	// arrival beyond it is shed: it does nothing and is in Counts.Shed.
	MaxOutstanding int `json:",omitempty"`
}

func (l Load) open() bool { return l.Rate > 0 }

// Span is when a run begins and which part of it counts. With Until, only the operations that end
// between From and Until count, and the run is over at Until: so the workers' counts are of the
// same time, by the clock that they share.
type Span struct {
	Begin    time.Time // when the load begins; zero: at once
	From     time.Time
	Until    time.Time
	BinWidth time.Duration // of Progress; zero: the constant BinWidth
}

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
	Connects Connects         // since the pool was opened
}

// Counts are operations by how they went.
type Counts struct {
	Operations int64 // that succeeded
	Refused    int64 // that failed because Postgres had too many clients
	Failed     int64 // that failed for another reason
	Shed       int64 // of an open loop: arrivals beyond Load.MaxOutstanding
	Unfinished int64 // of an open loop: outstanding when Config.Drain was over
}

// Add adds other's.
func (c *Counts) Add(other Counts) {
	c.Operations += other.Operations
	c.Refused += other.Refused
	c.Failed += other.Failed
	c.Shed += other.Shed
	c.Unfinished += other.Unfinished
}

// Errors is the number of operations that failed.
func (c Counts) Errors() int64 { return c.Refused + c.Failed }
