package passbuddy

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// This file decides with which error a caller fails.

// neverBadConn keeps driver.ErrBadConn out of Connect's errors: database/sql would take it for a
// stale connection and try again. A caller that is refused because the DB was closed is told so in
// database/sql's own words.
func neverBadConn(err error) error {
	if errors.Is(err, allotment.ErrPoolClosed) {
		return errDBClosed()
	}
	if errors.Is(err, driver.ErrBadConn) {
		return fmt.Errorf("passbuddy: connect: %v", err)
	}
	return err
}

// told returns err, with which an operation failed, or the reason behind it. An operation whose
// connection we have ended under its user fails with an error that says so, and that matches
// semaphore.ErrLost (or ErrClosed).
//
// database/sql would try an operation again that fails with ErrBadConn. Where we have ended the
// connection under the driver, its belief that a retry is safe is wrong: Postgres may have executed
// the operation. So a call on the DB itself gets an error that does not match ErrBadConn. Its
// connection is closed when it is returned.
func (c *conn) told(err error) error {
	if err == nil || !c.ph.broken.Load() {
		return err
	}
	why := c.ph.why.Load()
	if why == nil || errors.Is(err, *why) || !errors.Is(err, driver.ErrBadConn) &&
		!errors.Is(err, net.ErrClosed) && !errors.Is(err, pgconn.ErrConnClosed) {
		return err
	}
	return &endedError{why: *why, bad: !retriedByDB()}
}

// toldBefore is told for an operation that has not begun: to try it again is safe.
func (c *conn) toldBefore() error {
	if retriedByDB() {
		return driver.ErrBadConn
	}
	return c.told(driver.ErrBadConn)
}

// endedError matches ErrBadConn too if it is for an sql.Conn or a transaction: by that database/sql
// closes an sql.Conn.
type endedError struct {
	why error
	bad bool
}

func (e *endedError) Error() string {
	return "passbuddy: this connection was ended while it was in use: " + e.why.Error()
}

func (e *endedError) Unwrap() []error {
	if e.bad {
		return []error{e.why, driver.ErrBadConn}
	}
	return []error{e.why}
}
