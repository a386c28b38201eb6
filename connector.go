package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"sync"
	"sync/atomic"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/internal/socket"
)

// connector is the wrapper of one driver.Connector, that is, of one sql.DB. It is also the pool of
// its allotment. Each of its tasks has a file:
//
//	acquire.go   wait for a permit, then take an idle connection or open one
//	connect.go   open a connection under a permit
//	park.go      PerConnection's idle connections: parked, swept, evicted
//	idle.go      PerCheckout's idle connections
//	age.go       SetConnMaxLifetime
//	close.go     DB.Close, and the count of what the allotment is still needed for
//	backends.go  end, or look for, backends that this DB did not open
type connector struct {
	backend.Lender
	inner  driver.Connector
	driver driver.Driver
	engine engineSource
	cfg    Config
	a      *allotment.Allotment
	db     atomic.Pointer[sql.DB] // known only where OpenDB made it

	linger    linger
	refusals  refusals
	idle      idleList      // PerCheckout
	ages                    // PerConnection
	shapeSeen atomic.Uint32 // 1 + shape of the driver's connections, or 0
	dials     atomic.Int32  // PerCheckout: under way

	evictions atomic.Int32 // calls of evictThroughDB under way

	joined  atomic.Bool   // a is attached to the engine; see join
	closing chan struct{} // closed by Close, with mu held: see close.go

	left      chan struct{} // see Left
	leaveOnce sync.Once     // closes it

	mu sync.Mutex

	// Guarded by mu.
	busy     int           // callers inside acquire, and connections whose backend may live
	closes   int           // of those: closed, and their backend may live
	noCloses chan struct{} // closed when closes falls to 0; nil when nobody waits for that
	sweeping bool
}

var (
	_ driver.Connector = (*connector)(nil)
	_ io.Closer        = (*connector)(nil)
	_ allotment.Pool   = (*connector)(nil)
)

func newConnector(
	inner driver.Connector, d driver.Driver, engine engineSource, cfg Config,
) *connector {
	cn := &connector{
		inner: inner, driver: d, engine: engine, cfg: cfg, closing: make(chan struct{}),
		left: make(chan struct{}),
	}
	cn.Lend = cn.lend
	opts := cfg.options()
	if opts.Name == "" {
		opts.Name = serverOf(inner)
	}
	cn.a = allotment.New(cn, opts)
	return cn
}

// Driver is the driver that the DB was opened with: the registered one, or the connector's own.
func (cn *connector) Driver() driver.Driver {
	cn.answer()
	return cn.driver
}

// join attaches the allotment to the engine at the first use, so that a DB nobody uses costs
// nothing.
func (cn *connector) join() error {
	if cn.joined.Load() {
		return nil
	}
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.joined.Load() {
		return nil
	}
	if err := cn.engine(cn.a); err != nil {
		return err
	}
	cn.joined.Store(true)
	return nil
}

// Connect opens a connection, or takes over an idle one, once it has a permit. It waits for that in
// the allotment's queue.
//
// database/sql also calls it from its opener: one goroutine for the whole DB, whose context has no
// deadline, on behalf of callers that wait for SetMaxOpenConns. Waiting for a permit there would
// stall them all, and callers can check out what it opens without any call to the driver. So the
// opener gets a connection that is still empty. The first operation on it has the context of its
// caller, and does the waiting and the opening.
func (cn *connector) Connect(ctx context.Context) (driver.Conn, error) {
	if err := cn.join(); err != nil {
		return nil, neverBadConn(err)
	}
	if ctx.Value(evictKey{}) != nil {
		return nil, errEvicting
	}
	if err, _ := cn.refusals.again(ctx, true); err != nil {
		return nil, err
	}
	perCheckout := cn.cfg.Scope == PerCheckout
	if perCheckout {
		cn.idle.wrapperOpened()
	}
	opener := calledByOpener()
	if seen := cn.shapeSeen.Load(); opener && seen > 0 {
		outer := newConn(cn, shape(seen-1))
		if perCheckout {
			cn.idle.atRest(outer.base())
		}
		return outer, nil
	}
	held, err := cn.acquire(ctx)
	if err != nil {
		if perCheckout {
			cn.idle.wrapperClosed(nil, false)
		}
		return nil, neverBadConn(err)
	}
	outer := newConn(cn, held.ph.shape)
	outer.base().hold(held)
	if opener {
		outer.base().empty()
	}
	return outer, nil
}

// Abort implements [allotment.Pool]: the lease that covers slot is lost. A connection whose socket
// we follow ends at once, and an idle one too. Nothing may call another driver's connection while
// an operation runs on it: that one fails at its next operation, and is closed when it is returned.
func (cn *connector) Abort(slot *allotment.Slot) {
	switch v := slot.Attached().(type) {
	case *physical:
		v.abort(slot)
	case *socket.Link:
		v.AbortFor(slot.AbortCause())
	}
	// nil: still being opened. Attach will report false.
}
