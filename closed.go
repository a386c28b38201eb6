package passbuddy

import (
	"database/sql"
	"errors"
	"sync"
)

// This file is what callers see of a DB that was closed.
//
// database/sql itself refuses calls that come later, and wakes the callers that wait for
// SetMaxOpenConns. It does not know of those that wait for a permit: inside Connect, or inside the
// first operation on a wrapper. The channel closing ends their waits. Nothing is opened after it
// was closed: dial looks at it last.

// isClosed reports whether the DB was closed.
func (cn *connector) isClosed() bool {
	select {
	case <-cn.closing:
		return true
	default:
		return false
	}
}

// errDBClosed is database/sql's own error for calls on a closed DB, which it does not export.
var errDBClosed = sync.OnceValue(func() error {
	db := sql.OpenDB(&putConnProbe{})
	_ = db.Close()
	if err := db.Ping(); err != nil {
		return err
	}
	return errors.New("sql: database is closed")
})
