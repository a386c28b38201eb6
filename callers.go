package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// This file holds all that PassBuddy reads off the call stack, in slow paths only. database/sql
// calls a driver in the same way for different ends. In five places the end matters. Each
// function says how it takes an unknown caller, so that a future database/sql, or a wrapper between
// it and us, errs on the safe side. TestCallers holds them to the real one.

// callers calls visit with the functions of database/sql on the stack, innermost first and without
// the package's name, and with the line that each has come to, until visit returns false.
func callers(visit func(name string, line int) bool) {
	var pcs [48]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		frame, more := frames.Next()
		name, ok := strings.CutPrefix(frame.Function, "database/sql.")
		if ok && !visit(name, frame.Line) {
			return
		}
		if !more {
			return
		}
	}
}

// calledBy reports whether a function of database/sql with one of those names is on the stack.
func calledBy(names ...string) (yes bool) {
	callers(func(name string, _ int) bool {
		yes = slices.Contains(names, name)
		return !yes
	})
	return yes
}

// connCalls is where database/sql's conn calls Connect, once that was seen: the place of callers
// that wait.
var connCalls atomic.Uintptr

// calledByOpener reports whether database/sql's opener calls Connect, for no caller in particular.
// An unknown caller is not the opener. Connect calls this, and a saturated pool calls Connect at
// each checkout: there two frames instead of all of them save 8 µs of some 50. The second is for a
// connector that passes Connect on, as package env's does.
func calledByOpener() bool {
	var pcs [2]uintptr // Connect's caller, and its caller
	n := runtime.Callers(3, pcs[:])
	if seen := connCalls.Load(); seen != 0 && slices.Contains(pcs[:n], seen) {
		return false
	}
	for i := range n {
		frame, _ := runtime.CallersFrames(pcs[i : i+1]).Next()
		if frame.Function == "database/sql.(*DB).conn" {
			connCalls.Store(pcs[i])
		}
	}
	return calledBy("(*DB).openNewConnection")
}

// statementKind says who closes a prepared statement, and when.
type statementKind int

const (
	closedByCall statementKind = iota // before the connection is returned
	closedByTx                        // with its transaction, unless the connection is bad
	keptByDB                          // with the connection, or by the user
	keptByConn                        // by the user: maybe after the connection was returned
)

// preparedFor tells what a statement is prepared for. An unknown caller keeps it.
func preparedFor() (kind statementKind) {
	kind = keptByConn
	callers(func(name string, _ int) bool {
		switch name {
		case "(*DB).execDC", "(*DB).queryDC":
			kind = closedByCall
		case "(*Stmt).prepareOnConnLocked", "(*DB).prepare":
			kind = keptByDB
		case "(*Conn).PrepareContext":
			kind = keptByConn
		case "(*Tx).PrepareContext", "(*Tx).StmtContext":
			kind = closedByTx
		default:
			return true
		}
		return false
	})
	return kind
}

// operationFollows reports whether the checkout is for an operation that passes through the
// wrapper, which can then refuse it with the real error. The others are DB.Conn, and a prepared
// statement unless the wrapper is empty: then it is prepared there first. For an unknown caller no
// operation follows.
func operationFollows(empty bool) (yes bool) {
	below := false // database/sql's conn, which does the checkout for all of them
	callers(func(name string, _ int) bool {
		if name == "(*DB).conn" {
			below = true
			return true
		}
		if !below {
			return true
		}
		switch name {
		case "(*DB).exec", "(*DB).query", "(*DB).begin", "(*DB).prepare",
			"(*DB).PingContext", "(*DB).PingContext.func1":
			yes = true
		case "(*Stmt).connStmt":
			yes = empty
		}
		return false
	})
	return yes
}

// retriedByDB reports whether database/sql tries the operation again on another connection if it
// fails with ErrBadConn. It does so for the operations of an sql.DB, and not for those of an sql.Tx
// or sql.Conn. An unknown caller does not. A prepared statement of an sql.Tx is inside its retry
// too, but does not pass through the wrapper.
func retriedByDB() bool { return calledBy("(*DB).retry") }

// endedByUser reports whether a connection is returned because the user has committed or rolled
// back its transaction, and not because the transaction's context ended. An unknown caller is not
// the user.
func endedByUser() bool { return calledBy("(*Tx).Commit", "(*Tx).Rollback") }

// closedForAge reports whether database/sql closes a wrapper that lies at rest because of
// SetConnMaxLifetime. conn does that in place of a checkout, and putConn after a return. An unknown
// caller has another reason. Its cleaner counts as another reason too: it does not tell whether a
// wrapper was idle or alive for too long. Either way one wrapper less is at rest, which says
// enough.
//
// putConn closes a wrapper in two places: one for those that are bad or too old, one for those that
// are too many. They differ by their lines, see putConnLines.
func closedForAge() (yes bool) {
	callers(func(name string, line int) bool {
		switch name {
		case "(*DB).conn":
			yes = true
		case "(*DB).putConn":
			discards, tooMany := putConnLines()
			yes = line == discards && discards != tooMany
		case "(*DB).connectionCleaner", "(*DB).SetMaxIdleConns", "(*DB).Close",
			"(*DB).openNewConnection":
		default:
			return true
		}
		return false
	})
	return yes
}

// putConnLines finds out where database/sql's putConn closes a connection that is not valid, and
// where one that is one idle connection too many. It asks the real one, so no other Go version's
// lines matter.
var putConnLines = sync.OnceValues(func() (discards, tooMany int) {
	return putConnLine(false), putConnLine(true)
})

func putConnLine(valid bool) int {
	p := &putConnProbe{valid: valid}
	db := sql.OpenDB(p)
	defer db.Close()
	db.SetMaxIdleConns(-1)
	if c, err := db.Conn(context.Background()); err == nil {
		_ = c.Close()
	}
	return p.line
}

// putConnProbe is a driver whose connection notes who closes it.
type putConnProbe struct {
	driver.Conn
	valid bool
	line  int
}

func (p *putConnProbe) Connect(context.Context) (driver.Conn, error) { return p, nil }
func (p *putConnProbe) Driver() driver.Driver                        { return nil }
func (p *putConnProbe) IsValid() bool                                { return p.valid }

// Close is also database/sql's Close of the connector.
func (p *putConnProbe) Close() error {
	callers(func(name string, line int) bool {
		if name == "(*DB).putConn" {
			p.line = line
		}
		return name != "(*DB).putConn"
	})
	return nil
}
