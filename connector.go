package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/socket"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	// parkedMost is how long a connection that database/sql does not know of lies idle for the next caller.
	parkedMost = time.Second
	// closeMost bounds how long DB.Close waits for the backends of the connections it closed.
	closeMost = 5 * time.Second
)

// connector is the wrapper of one driver.Connector, which is to say of one sql.DB. It is also the pool of its allotment.
type connector struct {
	inner  driver.Connector
	driver driver.Driver
	open   fleetSource
	cfg    Config
	a      *allotment.Allotment
	db     atomic.Pointer[sql.DB] // known only where OpenDB made it

	linger    linger
	refusals  refusals
	idle      idleList      // PerCheckout
	ages                    // PerConnection
	shapeSeen atomic.Uint32 // 1 + shape of the driver's connections, or 0

	evictions atomic.Int32 // calls of evictThroughDB under way

	joined  atomic.Bool   // a is attached to the engine; see join
	closing chan struct{} // closed by Close: see closed.go

	mu sync.Mutex

	// Guarded by mu.
	leave    func() // takes the allotment out of the engine
	closed   bool
	busy     int           // callers inside acquire, and connections whose backend may live
	ending   int           // of those: closed, and their backend may live
	rest     chan struct{} // closed when ending falls to 0; nil when nobody waits for that
	sweeping bool
}

var (
	_ driver.Connector = (*connector)(nil)
	_ io.Closer        = (*connector)(nil)
	_ allotment.Pool   = (*connector)(nil)
)

func newConnector(inner driver.Connector, d driver.Driver, open fleetSource, cfg Config) *connector {
	cn := &connector{inner: inner, driver: d, open: open, cfg: cfg, closing: make(chan struct{})}
	cn.a = allotment.New(cn, cfg.options())
	return cn
}

// Driver is the driver that the DB was opened with: the registered one, or the connector's own.
func (cn *connector) Driver() driver.Driver { return cn.driver }

// join attaches the allotment to the engine at the first use, so that a DB nobody uses costs nothing.
func (cn *connector) join() error {
	if cn.joined.Load() {
		return nil
	}
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.joined.Load() {
		return nil
	}
	leave, err := cn.open(cn.a)
	if err != nil {
		return err
	}
	cn.leave = leave
	cn.joined.Store(true)
	return nil
}

// Connect opens a connection, or takes over an idle one, once it has a permit. It waits for that in the allotment's queue.
//
// database/sql also calls it from its opener: one goroutine for the whole DB, whose context has no deadline, on behalf of callers that
// wait for SetMaxOpenConns. Waiting for a permit there would stall them all, and what it opens can be checked out without any call
// to the driver. So the opener gets a connection that is still empty: the first operation on it, which has the
// context of its caller, does the waiting and the opening.
func (cn *connector) Connect(ctx context.Context) (driver.Conn, error) {
	if err := cn.join(); err != nil {
		return nil, neverBadConn(err)
	}
	if ctx.Value(evictKey{}) != nil {
		return nil, errEvicting
	}
	if err := cn.refusals.of(ctx, true); err != nil {
		return nil, err
	}
	perCheckout := cn.cfg.Scope == PerCheckout
	if perCheckout {
		cn.idle.opening()
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
			cn.idle.shellClosed(nil, false)
		}
		return nil, neverBadConn(err)
	}
	outer := newConn(cn, held.ph.shape)
	outer.base().hold(held)
	if opener {
		outer.base().release()
	}
	return outer, nil
}

// checkout is a connection, and the permit that covers it or this use of it.
type checkout struct {
	ph         *physical
	slot       *allotment.Slot
	generation uint32
}

// acquire waits for a permit and returns it with a connection. A caller whose permit is lost before it has its
// connection asks again: nothing was done over it yet. The connection that was made meanwhile ends.
func (cn *connector) acquire(ctx context.Context) (checkout, error) {
	cn.begin()
	defer cn.done()
	if cn.isClosed() {
		return checkout{}, allotment.ErrPoolClosed
	}
	ctx = cn.a.Bounded(ctx, cn.closing)
	for {
		held, err := cn.acquireOnce(ctx)
		if !cn.asksAgain(ctx, err) {
			if err != nil && cn.isClosed() {
				cn.sweep(0) // what a caller had been given that the close woke: it lies parked, and Close has swept
			}
			return held, err
		}
	}
}

// asksAgain reports whether err is of a permit that was lost too early to be of use, and its caller may still wait.
func (cn *connector) asksAgain(ctx context.Context, err error) bool {
	return errors.Is(err, semaphore.ErrLost) && ctx.Err() == nil && !cn.a.Overdue(ctx)
}

func (cn *connector) acquireOnce(ctx context.Context) (checkout, error) {
	if cn.cfg.Scope == PerCheckout {
		return cn.acquireCheckout(ctx)
	}
	for {
		slot, err := cn.a.Enter(ctx, true)
		if err != nil {
			return checkout{}, err
		}
		if slot == nil {
			break
		}
		// The turn came with an idle connection: parked, or claimed from a wrapper that lies in database/sql's free list.
		ph := slot.Attached().(*physical)
		if !cn.tooOld(ph) && ph.reset(ctx) {
			cn.moves(ph)
			return checkout{ph, slot, slot.Generation()}, nil
		}
		// If its socket was closed under us, the turn has ended with it, and we queue for another.
		turn := slot.Discard()
		ph.end(inBackground)
		if turn {
			break
		}
	}
	tied := false // the turn, to the connection
	defer func() {
		if !tied { // also if the driver panics
			cn.a.Exit()
		}
	}()
	slot, err := cn.a.OpenWithin(ctx)
	if err != nil {
		return checkout{}, err
	}
	ph, err := cn.dial(ctx, slot)
	if err != nil {
		return checkout{}, err
	}
	if cn.cfg.Fence {
		err = ph.recordBackend(ctx, slot)
	}
	if err == nil && (!slot.Attach(ph) || !slot.CheckOut()) {
		err = fmt.Errorf("passbuddy: while connecting: %w", semaphore.ErrLost)
	}
	if err != nil {
		slot.Leave()
		ph.end(inBackground)
		return checkout{}, err
	}
	tied = true
	return checkout{ph, slot, slot.Generation()}, nil
}

// dial opens a connection under slot, which may be nil. If that fails, slot is given back as soon as no
// backend is left of the attempt.
func (cn *connector) dial(ctx context.Context, slot *allotment.Slot) (ph *physical, err error) {
	at := newAttempt()
	if slot != nil {
		at.dialer.OpenExtra = cn.a.OpenExtra
	}
	start := time.Now()
	defer func() {
		if ph == nil { // also if the driver panics
			if slot != nil {
				slot.Leave()
			}
			cn.begin()
			at.abandon(func() {
				if slot != nil {
					slot.Gone()
				}
				cn.done()
			})
		}
	}()
	if cn.isClosed() {
		return nil, allotment.ErrPoolClosed
	}
	inner, err := cn.inner.Connect(at.mark(ctx))
	if err != nil {
		return nil, err
	}
	if inner == nil {
		return nil, errors.New("passbuddy: the driver's Connect returned neither a connection nor an error")
	}
	cn.linger.took(time.Since(start))
	ph = newPhysical(cn, inner, at.finish(inner))
	if ph.link != nil && slot != nil {
		ph.link.Bind(slot) // Attach tells again what it found out
	}
	ph.slot = slot
	cn.shapeSeen.Store(1 + uint32(ph.shape))
	cn.begin()
	return ph, nil
}

// Close is called by DB.Close, after the idle connections were closed and while others may still be checked out: those live on, and
// the allotment with them. Callers that wait for a permit are told at once, and nothing is opened any more. It waits, bounded, for the backends that have been closed, so that a program that ends
// after it leaves nothing behind.
func (cn *connector) Close() error {
	cn.mu.Lock()
	if !cn.closed {
		cn.closed = true
		close(cn.closing)
	}
	cn.busy++ // no leaving before the end of Close
	cn.mu.Unlock()
	cn.sweep(0)
	cn.idle.close()
	cn.awaitEnding()
	cn.done()
	if c, ok := cn.inner.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (cn *connector) awaitEnding() {
	cn.mu.Lock()
	if cn.ending == 0 {
		cn.mu.Unlock()
		return
	}
	if cn.rest == nil {
		cn.rest = make(chan struct{})
	}
	rest := cn.rest
	cn.mu.Unlock()
	timer := time.NewTimer(closeMost)
	defer timer.Stop()
	select {
	case <-rest:
	case <-timer.C:
	}
}

// begin and done count what the allotment is still needed for. After Close the last done ends it.
func (cn *connector) begin() {
	cn.mu.Lock()
	cn.busy++
	cn.mu.Unlock()
}

func (cn *connector) done() {
	cn.mu.Lock()
	cn.busy--
	leave := cn.leave
	if cn.busy > 0 || !cn.closed || leave == nil {
		leave = nil
	}
	cn.mu.Unlock()
	if leave != nil {
		leave()
	}
}

func (cn *connector) endBegins() {
	cn.mu.Lock()
	cn.ending++
	cn.mu.Unlock()
}

func (cn *connector) endDone() {
	cn.mu.Lock()
	cn.ending--
	if cn.ending == 0 && cn.rest != nil {
		close(cn.rest)
		cn.rest = nil
	}
	cn.mu.Unlock()
	cn.done()
}

// park gives an inner connection, whose wrapper is being closed, to a caller that waits, or keeps it a while for the next.
// It reports false if the connection must be closed instead.
func (cn *connector) park(slot *allotment.Slot) bool {
	if !slot.Park() {
		return false
	}
	cn.mu.Lock()
	closed, arm := cn.closed, !cn.sweeping
	cn.sweeping = true
	cn.mu.Unlock()
	if closed {
		cn.sweep(0)
	} else if arm {
		time.AfterFunc(parkedMost, func() { cn.sweep(parkedMost) })
	}
	return true
}

// sweep ends connections that have been parked for too long.
func (cn *connector) sweep(maxIdle time.Duration) {
	cn.mu.Lock()
	// Under mu, so that who parks one either is seen by this sweep, or sees that no sweep will follow.
	old, more := cn.a.SweepParked(maxIdle)
	cn.sweeping = more
	cn.mu.Unlock()
	for _, slot := range old {
		slot.Attached().(*physical).end(inBackground)
	}
	if more {
		time.AfterFunc(maxIdle, func() { cn.sweep(maxIdle) })
	}
}

type evictKey struct{}

var errEvicting = errors.New("passbuddy: nothing is idle")

// Evict implements [allotment.Pool].
func (cn *connector) Evict() bool {
	if slot := cn.a.EvictIdle(); slot != nil {
		slot.Attached().(*physical).endIdle()
		return true
	}
	return cn.evictThroughDB()
}

// evictMost bounds a checkout that is made to be refused.
const evictMost = 50 * time.Millisecond

// evictThroughDB ends an idle connection that must not be touched from outside, because database/sql has prepared
// statements on it: only database/sql can close those first. A checkout does it, which ResetSession refuses.
func (cn *connector) evictThroughDB() bool {
	db := cn.db.Load()
	if db == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), evictMost)
	defer cancel()
	e := &eviction{stop: cancel}
	cn.evictions.Add(1)
	defer cn.evictions.Add(-1)
	if c, err := db.Conn(context.WithValue(ctx, evictKey{}, e)); err == nil {
		_ = c.Close() // never used, so it holds nothing
	}
	return e.done.Load()
}

// eviction is passed to ResetSession through the context of evictThroughDB.
type eviction struct {
	stop context.CancelFunc // ends database/sql's retries
	done atomic.Bool
}

// Abort implements [allotment.Pool]: the lease that covers c is lost. A connection whose socket we follow ends at once; one that lies idle
// too. For another driver's connection in use that cannot be done, since nothing may call it while an
// operation runs: it fails at its next operation, and is closed when it is returned.
func (cn *connector) Abort(c *allotment.Slot) {
	switch v := c.Attached().(type) {
	case *physical:
		v.abort(c)
	case *socket.Link:
		v.AbortFor(c.AbortCause())
	}
	// nil: still being opened. Attach will report false.
}

// neverBadConn keeps driver.ErrBadConn out of Connect's errors: database/sql would take it for a stale connection and try again.
// A caller that is refused because the DB was closed is told so in database/sql's own words.
func neverBadConn(err error) error {
	if errors.Is(err, allotment.ErrPoolClosed) {
		return errDBClosed()
	}
	if errors.Is(err, driver.ErrBadConn) {
		return fmt.Errorf("passbuddy: connect: %v", err)
	}
	return err
}
