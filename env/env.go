// Package env puts a program's connections under the fleet's cap by its settings alone: another
// driver name, and a DSN or an environment that says which semaphore.
//
//	import _ "github.com/passbuddy/passbuddy/env"
//	...
//	db, err := sql.Open("passbuddy", os.Getenv("DATABASE_URL"))
//
// with, for example,
//
//	PASSBUDDY_REDIS_URL=redis://localhost:6379 PASSBUDDY_NAME=orders-db PASSBUDDY_CAPACITY=20
//
// or the same in the DSN:
//
//	postgres://app@localhost/orders?passbuddy_name=orders-db&passbuddy_capacity=20
//
// docs/CONFIGURATION.md lists all settings. The DSN beats the service file (pg_service.conf), which
// beats the environment, which beats the default. Postgres and its driver see none of the
// passbuddy_ keys. A setting that is unknown or refused makes sql.Open fail, with an error that
// names it. So does a missing Redis: no connection is ever opened uncounted, unless
// PASSBUDDY_DISABLE=1 says so.
//
// # Drivers
//
//   - "passbuddy" and "passbuddy-pgx": pgx's stdlib driver.
//   - "passbuddy-pq": lib/pq, which the program imports itself. See [UsePQ].
//
// Everything else is as package passbuddy says. In particular, call SetMaxIdleConns on the DB with
// the capacity. For pgxpool there is Open in package pgxpool, with the same settings.
//
// # One semaphore for the DBs that share it
//
// The DBs of one Redis, prefix and name share one session of the semaphore, whatever their drivers
// and databases, with the pools of pgxpool.Open. It is opened at the first connect of the first of
// them, and closed when the last one has closed and its last connection has ended. If it cannot be
// opened, the connect fails, and the next one tries again. DBs that disagree about what concerns
// the whole session, such as the capacity, do not share it: the later one's connects fail.
//
//	absent --first connect--> opening --> open, n DBs --last DB closed--> closing --> absent
//
// Callers that connect while it is being opened wait together, each as long as its context allows.
// One that gives up does not end the attempt for the others.
package env

import (
	"database/sql"
	"slices"
)

func init() {
	register("passbuddy", &envDriver{base: pgxBase{}})
	register("passbuddy-pgx", &envDriver{base: pgxBase{}})
	register("passbuddy-pq", &envDriver{base: pqBase{}})
}

// register leaves a name alone that the program has registered before: sql.Register would panic in
// an import.
func register(name string, d *envDriver) {
	if !slices.Contains(sql.Drivers(), name) {
		sql.Register(name, d)
	}
}
