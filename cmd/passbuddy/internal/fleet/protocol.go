// Package fleet runs a number of worker processes that share one Postgres, and reports their
// results.
//
// A worker is the program itself, started anew with [WorkerCommand]: its main must call [RunWorker]
// then. The parent and a worker speak JSON, one value a line:
//
//	parent -> worker (stdin)    Config; then a Span when the whole fleet is ready
//	worker -> parent (stdout)   a Report when ready, then about four a second, then a Final one
//
// SIGTERM ends a worker's run, if it has not ended by itself, and makes the worker report. The end
// of its stdin means that the parent is gone, and ends the worker at once. So no worker outlives
// its parent, however the parent ended.
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

// A Guard keeps the fleet under its cap.
type Guard string

const (
	Unguarded Guard = ""          // only the size of the worker's pool
	PassBuddy Guard = "passbuddy" // permits of a semaphore, in Config.Scope
	Original  Guard = "original"  // the algorithm of PassBuddy 1.0.2 for Node, at each checkout
)

// Config configures a worker.
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
	// Graceful applies to a worker that is told to end before its span is over. It finishes the
	// operations in flight for as long as Drain allows, including those that wait for a connection.
	// Operations still in flight after that count as failed.
	Graceful bool

	// Drain is how long operations in flight at the end may take to end by themselves.
	Drain time.Duration
	// Closing is how long closing the pool may take after that. Connections still open then end
	// with the process. 0 means no limit.
	Closing time.Duration
}

// Operation is the work that a goroutine repeats. Exactly one field is set.
type Operation struct {
	// Exec is a statement; the worker ignores its rows.
	Exec string `json:",omitempty"`
	// Row is a query for one number.
	Row string `json:",omitempty"`
	// Transaction lists statements that return one row with one number each. Their only parameter
	// is a number from 1 to TransactionKeys, the same for all statements of a transaction.
	Transaction []string `json:",omitempty"`
}

// TransactionKeys is the number of rows from which a transaction picks one.
const TransactionKeys = 10_000

// Load says how operations arrive at a worker: in an open loop with a Rate, else in a closed one.
type Load struct {
	// Pause is the mean of an exponential pause of each goroutine before each operation: a closed
	// loop with pauses.
	Pause time.Duration `json:",omitempty"`
	// Rate is how many operations arrive per second, as a Poisson process: an open loop. No arrival
	// waits for an earlier one, and latencies count from the operation's due time.
	// Config.Goroutines is ignored then.
	Rate float64 `json:",omitempty"`
	// Ramp is how long the rate of an open loop takes to grow from 0 to Rate.
	Ramp time.Duration `json:",omitempty"`
	// MaxOutstanding bounds the operations in flight of an open loop. An arrival beyond it is shed:
	// it does nothing and counts in Counts.Shed.
	MaxOutstanding int `json:",omitempty"`
}

func (l Load) open() bool { return l.Rate > 0 }

// Span says when a run begins and which part of it counts. With Until, only the operations that end
// between From and Until count, and the run is over at Until. So all workers count over the same
// time, by the clock that they share.
type Span struct {
	Begin    time.Time // when the load begins; zero: at once
	From     time.Time
	Until    time.Time
	BinWidth time.Duration // of Progress; zero: the constant BinWidth
}

// Report holds a worker's progress. Its Counts begin with the part of the run that counts.
type Report struct {
	Counts
	Final bool `json:",omitempty"`
	// why the worker could not do its work; set only in its last report
	Error string `json:",omitempty"`

	// Only in the final report.
	// goroutines with at least one successful operation
	Served   int              `json:",omitempty"`
	Failures map[string]int64 `json:",omitempty"` // other failures by their shortened text
	Wait     []byte           `json:",omitempty"` // time to get a connection: an encoded Latency
	Total    []byte           `json:",omitempty"` // time of the whole operation
	Progress Progress         // of a run with an end
	Connects Connects         // since the pool was opened
}

// Counts counts operations by their result.
type Counts struct {
	Operations int64 // that succeeded
	Refused    int64 // that failed because Postgres had too many clients
	Failed     int64 // that failed for another reason
	Shed       int64 // of an open loop: arrivals beyond Load.MaxOutstanding
	Unfinished int64 // of an open loop: outstanding when Config.Drain was over
}

// Add adds other's counts.
func (c *Counts) Add(other Counts) {
	c.Operations += other.Operations
	c.Refused += other.Refused
	c.Failed += other.Failed
	c.Shed += other.Shed
	c.Unfinished += other.Unfinished
}

// Errors returns the number of operations that failed.
func (c Counts) Errors() int64 { return c.Refused + c.Failed }
