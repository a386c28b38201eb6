package passbuddy

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/semaphore"
)

// PoolStats are the figures of one connection pool at one instant.
type PoolStats = semaphore.PoolStats

// Stats returns the figures of db. To ask for them costs no round trip and no connection. It
// returns false if db is not PassBuddy's, or another library has wrapped its connector or driver
// since: [semaphore.Semaphore.Stats] has the figures of those.
//
// Callers that wait for SetMaxOpenConns are in [sql.DBStats], not here. Until the first use of db,
// two DBs can have the same Name.
func Stats(db *sql.DB) (PoolStats, bool) {
	cn := connectorOf(db)
	if cn == nil {
		return PoolStats{}, false
	}
	return PoolStats(cn.a.Report()), true
}

// An sql.DB keeps its connector to itself. But DB.Driver asks the connector, on its caller's
// goroutine. So connectorOf calls it, and the connector that is then asked on this goroutine is
// the one of that DB. Nothing needs to be kept for each DB, and nothing depends on how an sql.DB is
// laid out.
var asking struct {
	n  atomic.Int32 // calls of connectorOf under way
	mu sync.Mutex
	// by goroutine, those of the calls under way; guarded by mu
	found map[string]*connector
}

// connectorOf returns the connector of db, or nil if that is not ours.
func connectorOf(db *sql.DB) (cn *connector) {
	if db == nil {
		return nil
	}
	me := goroutine()
	asking.n.Add(1)
	asking.mu.Lock()
	if asking.found == nil {
		asking.found = make(map[string]*connector)
	}
	asking.found[me] = nil
	asking.mu.Unlock()
	defer func() {
		asking.mu.Lock()
		cn = asking.found[me]
		delete(asking.found, me)
		asking.mu.Unlock()
		asking.n.Add(-1)
	}()
	db.Driver()
	return nil
}

// answer tells connectorOf, if it asks on this goroutine.
func (cn *connector) answer() {
	if asking.n.Load() == 0 {
		return
	}
	me := goroutine()
	asking.mu.Lock()
	defer asking.mu.Unlock()
	if _, ok := asking.found[me]; ok {
		asking.found[me] = cn
	}
}

var (
	_ allotment.ConnCounter = (*connector)(nil)
	_ allotment.Checkout    = (*physical)(nil)
)

// CountConns implements [allotment.ConnCounter], for PerCheckout.
func (cn *connector) CountConns() (idle, opening, closing int) {
	cn.idle.mu.Lock()
	idle = len(cn.idle.free) + cn.idle.pinned
	cn.idle.mu.Unlock()
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return idle, int(cn.dials.Load()), cn.closes
}

// Closing implements [allotment.Checkout].
func (ph *physical) Closing() bool { return ph.closeBegun.Load() }

// countOpen counts an attempt to open a connection that began then.
func (cn *connector) countOpen(began time.Time, err error) {
	if !errors.Is(err, allotment.ErrPoolClosed) { // else nothing was tried
		cn.a.CountOpen(began, err)
	}
}

// serverOf names the server and the database of a connector of pgx's, by which a pool is called
// whose Config has no PoolName. It is "" for other drivers.
func serverOf(c driver.Connector) string {
	if own, ok := c.(*pgxConnector); ok {
		cfg, err := pgx.ParseConfig(own.dsn)
		if err != nil {
			return ""
		}
		return backend.PoolName(&cfg.Config)
	}
	if field, ok := stdlibConfig(c); ok {
		cfg := field.Interface().(pgx.ConnConfig)
		return backend.PoolName(&cfg.Config)
	}
	return ""
}
