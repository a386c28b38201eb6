package passbuddy

import (
	"runtime"
	"strings"
	"sync/atomic"
)

// This file holds all that PassBuddy reads off the call stack, in slow paths only. database/sql calls a driver in the same way for
// different ends, and in four places the end matters. Each function names what it takes an unknown caller for, so that a
// future database/sql, or a wrapper between it and us, errs on the safe side. TestCallers holds them to the real one.

// callers calls visit with the functions of database/sql on the stack, innermost first and without the package's name, until it
// returns false.
func callers(visit func(name string) bool) {
	var pcs [48]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		frame, more := frames.Next()
		if name, ok := strings.CutPrefix(frame.Function, "database/sql."); ok && !visit(name) {
			return
		}
		if !more {
			return
		}
	}
}

// connCalls is where database/sql's conn calls Connect, once that was seen: the place of callers who wait.
var connCalls atomic.Uintptr

// calledByOpener reports whether Connect is called for nobody in particular. An unknown caller is somebody. It is called by Connect, which
// a saturated pool calls at each checkout: there one frame instead of all of them saves 8 µs of some 50.
func calledByOpener() (yes bool) {
	var caller [1]uintptr // Connect's
	if runtime.Callers(3, caller[:]) == 1 && caller[0] == connCalls.Load() {
		return false
	}
	callers(func(name string) bool {
		yes = yes || name == "(*DB).openNewConnection"
		return !yes
	})
	if frame, _ := runtime.CallersFrames(caller[:]).Next(); frame.Function == "database/sql.(*DB).conn" {
		connCalls.Store(caller[0])
	}
	return yes
}

// statementKind says who closes a prepared statement, and when.
type statementKind int

const (
	closedByCall statementKind = iota // before the connection is returned
	closedByTx                        // with its transaction, unless the connection is bad
	keptByDB                          // when database/sql closes the connection or the user the statement
	keptByConn                        // when the user closes it: maybe after the connection was returned
)

// preparedFor tells what a statement is prepared for. An unknown caller keeps it.
func preparedFor() (kind statementKind) {
	kind = keptByConn
	callers(func(name string) bool {
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

// operationFollows reports whether the checkout is for an operation that passes through the wrapper, which can then refuse it with the real
// error. The others are DB.Conn and prepared statements. An unknown caller has none.
func operationFollows() (yes bool) {
	below := false // database/sql's conn, which does the checkout for all of them
	callers(func(name string) bool {
		if name == "(*DB).conn" {
			below = true
			return true
		}
		if !below {
			return true
		}
		switch name {
		case "(*DB).exec", "(*DB).query", "(*DB).begin", "(*DB).prepare", "(*DB).PingContext", "(*DB).PingContext.func1":
			yes = true
		}
		return false
	})
	return yes
}

// endedByUser reports whether a connection is returned because a transaction was committed or rolled back by its
// user, and not by the end of its context. An unknown caller is not the user.
func endedByUser() (yes bool) {
	callers(func(name string) bool {
		yes = yes || name == "(*Tx).Commit" || name == "(*Tx).Rollback"
		return !yes
	})
	return yes
}
