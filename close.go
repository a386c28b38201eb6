package passbuddy

import (
	"database/sql"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/engine"
)

// This file closes a DB.
//
// database/sql itself refuses calls that come after DB.Close, and wakes the callers that wait for
// SetMaxOpenConns. It does not know of those that wait for a permit: inside Connect, or inside the
// first operation on a wrapper. The channel closing ends their waits. Nothing is opened after it
// was closed: dial looks at it last.
//
// The allotment stays in the engine while it is needed. busy counts what needs it, by begin and
// done; after Close the last done takes it out.

// closeTimeout bounds how long DB.Close waits for the backends of the connections it closed.
const closeTimeout = 5 * time.Second

// Close is called by DB.Close, after the idle connections were closed and while others may still be
// checked out: those live on, and the allotment with them. Callers that wait for a permit are told
// at once, and nothing is opened any more. Close waits, bounded, for the backends that have been
// closed, so that a program that ends after it leaves nothing behind.
func (cn *connector) Close() error {
	cn.mu.Lock()
	if !cn.isClosed() {
		close(cn.closing)
	}
	cn.busy++ // the allotment stays in the engine until the end of Close
	cn.mu.Unlock()
	cn.sweep(0)
	cn.idle.close()
	cn.awaitCloses()
	cn.done()
	if c, ok := cn.inner.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// isClosed reports whether the DB was closed.
func (cn *connector) isClosed() bool { return allotment.IsClosed(cn.closing) }

func (cn *connector) begin() {
	cn.mu.Lock()
	cn.busy++
	cn.mu.Unlock()
}

func (cn *connector) done() {
	cn.mu.Lock()
	cn.busy--
	leaves := cn.busy == 0 && cn.isClosed()
	cn.mu.Unlock()
	if leaves {
		if cn.joined.Load() {
			cn.a.Close()
		}
		cn.leaveOnce.Do(func() { close(cn.left) })
	}
}

// Left returns a channel that is closed when the DB is closed, and nothing of it needs the
// semaphore any more: its last connection has ended. Package env, which finds this method by an
// interface, then does without the semaphore. No other module can call it.
func (cn *connector) Left(engine.Seam) <-chan struct{} { return cn.left }

// closeBegins and closeEnds count the connections that were closed, and whose backend may live.
// dial has called begin for each; closeEnds calls done.
func (cn *connector) closeBegins() {
	cn.mu.Lock()
	cn.closes++
	cn.mu.Unlock()
}

func (cn *connector) closeEnds() {
	cn.mu.Lock()
	cn.closes--
	if cn.closes == 0 && cn.noCloses != nil {
		close(cn.noCloses)
		cn.noCloses = nil
	}
	cn.mu.Unlock()
	cn.done()
}

func (cn *connector) awaitCloses() {
	cn.mu.Lock()
	if cn.closes == 0 {
		cn.mu.Unlock()
		return
	}
	if cn.noCloses == nil {
		cn.noCloses = make(chan struct{})
	}
	none := cn.noCloses
	cn.mu.Unlock()
	select {
	case <-none:
	case <-time.After(closeTimeout):
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
