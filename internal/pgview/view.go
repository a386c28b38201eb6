// Package pgview looks at a Postgres server from outside: how many connections it allows, and whose
// those are that it has. It opens one connection for each look, which is counted in none of its
// figures.
//
// Postgres does not know which backends are a fleet's. [View.Mark] guesses by the name of the
// application and the client's address, and says so.
package pgview

import "time"

// Application is the application_name of our own connection.
const Application = "passbuddy-inspect"

// A View holds the result of one look.
type View struct {
	At      time.Time `json:"at"`             // Postgres's clock
	Version string    `json:"server_version"` // such as "17.2"

	MaxConnections int `json:"max_connections"`
	// Reserved is how many of those ordinary roles cannot have: SuperuserReserved, and on
	// PostgreSQL 16 and later RoleReserved, for members of pg_use_reserved_connections.
	Reserved          int `json:"reserved"`
	SuperuserReserved int `json:"superuser_reserved_connections"`
	RoleReserved      int `json:"reserved_connections"`
	// Limits are those of roles and databases that have one.
	Limits []Limit `json:"limits"`
	// CheckInterval is client_connection_check_interval: how often a backend that runs a query
	// looks whether its client is still there. 0: never. -1: this Postgres does not know it.
	CheckInterval float64 `json:"client_connection_check_interval_seconds"`

	// Ours is how many backends are the fleet's, as Mark guesses, and Others are the rest.
	Ours   int `json:"ours"`
	Others int `json:"others"`
	// Guess says what Mark went by.
	Guess string `json:"guess"`
	// Hidden is how many backends show neither state nor address to the role that looked. A member
	// of pg_read_all_stats sees all.
	Hidden int `json:"hidden"`
	// Backends are the client backends, ours included, in groups: the largest first.
	Backends []Group `json:"backends"`
}

// A Limit is a CONNECTION LIMIT.
type Limit struct {
	Kind     string `json:"kind"` // role or database
	Name     string `json:"name"`
	Limit    int    `json:"limit"`
	Backends int    `json:"backends"` // how many count against it now
}

// A Group are the backends that agree in all of these.
type Group struct {
	Application string `json:"application"` // application_name, or ""
	User        string `json:"user"`
	Database    string `json:"database"`
	Address     string `json:"address"` // of the client; "local" for a Unix socket, "" for unknown
	State       string `json:"state"`   // as pg_stat_activity has it; "" for unknown
	Backends    int    `json:"backends"`
	// Ours is a guess: see View.Guess.
	Ours bool `json:"ours"`
	// OldestState is for how long the first of them has been in this state, and
	// OldestTransaction how long the longest transaction has been open.
	OldestState       float64 `json:"oldest_state_seconds"`
	OldestTransaction float64 `json:"oldest_transaction_seconds"`
}

// Usable is how many connections all ordinary roles can have together.
func (v *View) Usable() int { return max(0, v.MaxConnections-v.Reserved) }

// Total is how many client backends there are.
func (v *View) Total() int { return v.Ours + v.Others }

// Free is how many connections ordinary roles can still open.
func (v *View) Free() int { return max(0, v.Usable()-v.Total()) }

// IdleInTransaction is the state of a backend whose client has an open transaction, and runs
// nothing.
const IdleInTransaction = "idle in transaction"
