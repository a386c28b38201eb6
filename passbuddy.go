// Package passbuddy keeps the Postgres connections of a whole fleet under one cap.
//
// N processes on any number of machines share one Postgres. Each wraps its database/sql driver with
// a [semaphore.Semaphore] of the same name and capacity:
//
//	sem, err := semaphore.Open(ctx, redisURL, semaphore.Config{Capacity: 80})
//	...
//	passbuddy.Register("postgres-capped", stdlib.GetDefaultDriver(), sem, passbuddy.Config{})
//	db, err := sql.Open("postgres-capped", dsn)
//
// From then on the backends they hold together never exceed the capacity. At the cap, callers queue
// instead of failing, first come first served within a process. A connection that lies idle in one
// process is given back as soon as another process needs it. The checkout of a warm connection
// costs no network round trip.
//
// A program that is not to be changed takes package env instead: its drivers read all that from the
// DSN and the environment.
//
// # What it works with
//
// Every database/sql driver. Only Connector and Conn are wrapped: Stmt, Tx and Rows reach
// database/sql as the driver made them. The driver's own connection is behind Raw (see [RawConn]).
//
// A permit is free again only when the server's backend has ended. How PassBuddy knows that depends
// on the driver:
//
//   - pgx's stdlib driver, registered or as a connector, and every driver that dials through a
//     [Dialer] (lib/pq, by pq.Connector.Dialer): the socket is read to its end in the background,
//     for 15s at most. With pgx, PassBuddy ends a backend that the network has lost over another
//     connection: by pg_terminate_backend, told by pid, age, role and address.
//   - Any other: the permit stays taken for a while after the driver's Close returned: 15ms, and as
//     long as the slowest recent connect took. That is an estimate. A server that takes longer to
//     end a backend than to start one can hold more than the cap for that time. While a prepared
//     statement is open on an idle connection, that connection is given back to the fleet at its
//     next use, unless [OpenDB] made the DB.
//
// # What it does not promise
//
// Clients that do not take part (psql, other stacks) are not counted; leave them room. Two events
// can exceed the cap until they are noticed: an asynchronous failover of Redis that loses its last
// grants, and a process that is frozen past its lease. docs/SAFETY.md lists each, with its bound.
//
// # database/sql's own limits
//
// Leave SetMaxOpenConns alone: callers wait in PassBuddy's queue, which is fair and knows the
// fleet. Raise SetMaxIdleConns to the capacity ([OpenDB] does it). With the default of 2,
// database/sql closes connections that PassBuddy would keep warm. It gains nothing by that, since
// an idle connection is given back on demand.
//
// SetConnMaxLifetime applies to the driver's connections, also where one passes from caller to
// caller inside PassBuddy. database/sql does not tell its limit: PassBuddy learns the limit when
// database/sql first closes a connection for its age. Until then, one lifetime after callers first
// had to wait, a connection can reach twice the lifetime. With SetMaxIdleConns(0) nothing is
// learned while callers wait.
//
// After DB.Close, callers that wait for a permit get database/sql's own error, and nothing is
// opened for them. An operation whose connection is ended under it, because its lease was lost,
// fails with an error that matches [semaphore.ErrLost]: Postgres may have executed it. An operation
// of the DB itself that had not begun goes to another connection.
package passbuddy

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// DefaultAcquireTimeout is the AcquireTimeout of a zero Config.
const DefaultAcquireTimeout = allotment.DefaultAcquireTimeout

// A Scope says what a permit covers.
type Scope uint8

const (
	// PerConnection: a permit covers a connection from before it is opened until its backend has
	// ended. So the server's backends never exceed the capacity, idle ones included. An idle
	// connection keeps its permit only while nobody wants it.
	PerConnection Scope = iota
	// PerCheckout: a permit is acquired at each checkout and released at each return. It caps
	// concurrent use; idle connections stay open and are not counted. A checkout costs one round
	// trip to Redis, or none where a local caller hands its permit on.
	PerCheckout
)

func (s Scope) String() string {
	switch s {
	case PerConnection:
		return "PerConnection"
	case PerCheckout:
		return "PerCheckout"
	}
	return fmt.Sprintf("Scope(%d)", uint8(s))
}

// Config says how connections use the permits of a semaphore. Its zero value is the recommended
// configuration.
type Config struct {
	// Scope says what a permit covers. Default PerConnection.
	Scope Scope

	// AcquireTimeout bounds all waits of one checkout together: for its turn, for a permit, again
	// for both if the permit is lost meanwhile. With Fence it bounds the record of the backend too.
	// The time of a dial counts, but no dial is cut short. The caller's context may end the wait
	// earlier. A caller refused by it gets [semaphore.ErrCapacity], or [semaphore.ErrUnavailable]
	// where Redis could not be asked. Default 30s; must not be negative.
	AcquireTimeout time.Duration

	// PoolName is this pool's name for operators: in [Stats], in snapshots and in metrics.
	// Default "<server>:<port>/<database>" with pgx, that is, pgxpool or its stdlib driver wrapped
	// directly; otherwise "pool". Control characters are removed, and it is cut at 100 bytes.
	//
	// Pools that use one semaphore in one process never share a name. The second to be used gets
	// " (2)" after it, and so on, until the first is closed. The order can be another in the next
	// process, so name such pools.
	PoolName string

	// KeepOnLoss keeps open connections whose lease was lost because Redis could not be reached,
	// instead of ending them. No new ones are opened. The cap can be exceeded for as long as that
	// lasts: others may be granted the same permits.
	KeepOnLoss bool

	// FallbackConns is how many connections this process may hold while Redis cannot be asked. They
	// are counted in again when it is back; until then the cap can be exceeded by that many for
	// each process. Default 0; must not be negative.
	FallbackConns int

	// Fence holds the cap against processes that are stopped for longer than their leases (SIGSTOP,
	// a frozen lambda, a paused VM). Such a process cannot close its connections. Without Fence its
	// backends stay alive while its permits are granted to others, so the cap is exceeded. With
	// Fence each new connection's backend is recorded in Redis before the connection is handed out.
	// When a lease expires, another process has Postgres end that backend (pg_terminate_backend)
	// and sees it gone; only then is the permit granted again. The process that was stopped finds
	// its connections dead when it wakes, and queues like any other. If it is stopped in the few
	// milliseconds of a connect, that connection stays unrecorded.
	//
	// A process that was killed is the other case: its backends end at once, and its leases would
	// go on. While a caller waits, another process with Fence looks for the recorded backends of a
	// session that lost its subscription, and those that are gone cost no lease. It ends none of
	// them.
	//
	// Fence costs each connect a query and a round trip to Redis, two where its permit covered a
	// connection before, and warm checkouts nothing. Only backends that were opened with Fence are
	// ever ended, told by pid and start, and only those of the role that the other process logs in
	// with. So all pools of a semaphore should have Fence on, use one role, and one Postgres
	// server. No privilege is needed beyond that.
	//
	// The other process needs a connection to do it by. If within 10s no live process gets one, or
	// none can end the backend, the permit is free all the same: the first after 10s, others after
	// 11s. The first process that can then ends the backend. So a process that crashes while it
	// holds all permits is replaced that much later than without Fence: no other process has a
	// connection to look by.
	//
	// For pgx alone: pgxpool, and its stdlib driver wrapped directly and opened by a DSN or a
	// connector. Other drivers are refused. A connection fails to open through a pooler, or by the
	// name of a configuration registered with stdlib. PerCheckout, KeepOnLoss and FallbackConns are
	// refused beside it: they keep connections without a permit. Default false.
	Fence bool
}

// withDefaults returns c with its defaults filled in, or an error that names the refused field.
func (c Config) withDefaults() (Config, error) {
	if c.Scope > PerCheckout {
		return c, fmt.Errorf("passbuddy: Config.Scope is %v: it must be PerConnection or PerCheckout", c.Scope)
	}
	o, err := c.options().Resolve()
	c.AcquireTimeout = o.AcquireTimeout
	return c, err
}

func (c Config) options() allotment.Options {
	return allotment.Options{
		PerCheckout:    c.Scope == PerCheckout,
		Name:           c.PoolName,
		AcquireTimeout: c.AcquireTimeout,
		KeepOnLoss:     c.KeepOnLoss,
		FallbackConns:  c.FallbackConns,
		Fence:          c.Fence,
	}
}
