// Package allotment keeps the permits that one connection pool of this process
// owns now, decoupled from any one connection, and the local queue for them.
//
// # Invariant
//
// At every instant, open + opening + closing connections <= permits owned.
// [Allotment.Open] is the only door to a new connection and takes a spare permit
// under the lock; [Conn.Gone] is the only way back, after the server's backend has ended.
//
// # Turns
//
// A caller takes a turn ([Allotment.Enter]) before it may take a connection from
// its pool or open one, and gives it back with the connection. Turns are what
// prevents self-starvation: a caller that waits, waits here, in one FIFO queue that both a
// local return and a grant from the fleet serve. It never waits inside
// the pool's open, where a return could not reach it.
//
// How many turns are free is derived, never counted (see available):
//
//	owned - turns - leaving - evicting - uncovered openings
//
// A unit that is free can be an idle connection or a spare permit.
//
// # States of a connection
//
//	          Ready            CheckOut
//	opening --------> idle <------------> out
//	   |                |      Return      |
//	   |  Leave         |  Leave, Evict    |  Leave
//	   +------------> leaving <------------+
//	                    |
//	                    | Gone: the backend has ended
//	                    v
//	            spare permit, or back to the fleet
//
// # Debts
//
// A recalled permit passes through up to four counters.
//
//   - deferred: the recall is not due yet.
//   - debt: no unit is set aside for it. The next free unit pays it, before any local caller.
//   - evicting: an idle connection is set aside, and the pool is searched for it.
//   - due: a connection is leaving, and the next permit that becomes spare goes to the fleet.
package allotment

import (
	"context"
	"errors"
	"fmt"
	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
	"sync"
	"time"
)

// Fleet is what an allotment asks of the engine. [*engine.Pool] is one.
// No method blocks, and each may be called with the allotment's lock held.
type Fleet interface {
	Ask(n int)             // want n permits more; a level, not an increment
	Give(p *engine.Permit) // release it, off the caller's path
	Offer(n int)           // n units lie idle: does anyone need them?
	Full() bool            // Redis has answered the last Ask, and had nothing free
	Err() error            // why the engine cannot ask Redis now, or nil
}

// Pool is the integration's side. Both methods run without the allotment's lock.
type Pool interface {
	// Evict ends one connection that lies idle in the pool, through [Allotment.EvictIdle] or
	// [Conn.Evict], and reports whether it found one. It may block for a bounded time.
	Evict() bool
	// Fence ends c, whoever uses it: its lease is lost.
	Fence(c *Conn)
}

// Options are what the two integrations pass on from their users.
type Options struct {
	AcquireTimeout time.Duration // longest wait for a turn; the caller's ctx may end it earlier
	KeepOnLoss     bool          // keep open connections whose lease is lost, open no new ones
	FallbackConns  int           // connections this process may hold while Redis cannot be asked
	Fence          bool          // backends are recorded, see Conn.Mark; not with the two above
	MaxConns       int           // connections the pool can hold: more permits are never asked for; 0: any number
	Detached       bool          // permits cover checkouts, not connections: a Conn is one checkout, and there is never an idle one
}

const (
	// Bounds of how long a unit lies unused before it is offered; the rule is in cost.go. The time of the last idle one doubles, up to
	// patienceMost, when what was given is missed soon, and halves with every patienceCalm in which nothing was: callers that think for longer do not
	// lose their connection at each thought.
	patienceLeast = 4 * time.Millisecond
	patienceMost  = time.Second
	patienceCalm  = 5 * time.Second
	doublingsMost = 4
	// keepDetached is how long a permit that covers no connection is kept for the next caller, without one.
	keepDetached = 50 * time.Millisecond
	// countInGrace is how long a connection that lives without a permit may wait for one once Redis is back.
	countInGrace = time.Second
	// evictAgain paces a search for an idle connection that is about to be put into its pool.
	evictAgain     = time.Millisecond
	evictAgainMost = 64 * time.Millisecond
)

// Allotment is the state of one pool. Its zero value is not usable; see New.
type Allotment struct {
	fleet Fleet
	pool  Pool
	opts  Options

	mu sync.Mutex

	// Guarded by mu.
	owned     int              // permits, spare or under a connection
	spare     []*engine.Permit // under no connection; nil is a permit this process gave itself
	uncounted int              // of owned: those without a permit of the fleet (FallbackConns, KeepOnLoss)
	turns     int
	conns     [gone + 1]int // connections by state
	fixed     int           // of the idle ones: those that only their pool can use or end; see Pin
	deferred  []time.Time   // when the recalls fall due that are not due yet, the earliest first
	ahead     ahead
	debt      int
	evicting  int
	stays     bool // what the engine was told last: see Fleet.Stay
	due       int
	searching bool // a goroutine is in search
	idle      Conn // ring of idle connections, most recently returned first
	all       map[*Conn]struct{}
	waiters   queue         // callers that wait for a turn
	openers   queue         // callers with a turn that wait for a spare permit
	wanted    bool          // someone in the fleet waits
	doublings int           // of patience
	missed    time.Time     // when that last grew
	gave      time.Time     // when something idle was promised away that nobody here has missed yet
	offering  bool          // the offer timer is set
	low       int           // fewest free units since it was set
	lowSince  time.Time     // when it was set
	unused    time.Duration // for how long there has been a unit that nobody used, as far as offers were considered
	uses      uses
	costs     costs
	ready     time.Time // when a connection was last opened
	failing   bool      // the last dial failed
	dialling  time.Time // since when connections are being opened without a break
	backlog   backlog
	again     *time.Timer // settles, at againAt: see settleIn
	againAt   time.Time
	kept      time.Time // Detached: when a permit was last in use
	outside   int       // connections taken out of the pool for good, beyond its MaxConns: see SetOutside
	returns   uint64    // checkouts that ended while a caller may have waited: see nested.go
	granted   time.Time // when the last grant arrived
	back      time.Time // when Redis came back after it could not be asked
	closed    bool
	doubts    map[*Conn]*Suspect // connections that are leaving, in doubt: see doubt.go
	outlived  []*Suspect         // of those that are gone by our count: backends that may live
	reopened  bool               // a connection was opened since they were last asked about
	resolving bool               // a goroutine is in resolve
	lent      *engine.Permit     // owned, and nobody's but the urgent caller's: see lend
	shut      bool               // the pool is closed, and can ask nothing
}

// New returns an allotment without permits. Attach must follow before it is used.
func New(pool Pool, opts Options) *Allotment {
	a := &Allotment{pool: pool, opts: opts, all: make(map[*Conn]struct{})}
	a.idle.prev, a.idle.next = &a.idle, &a.idle
	return a
}

// Join connects the allotment to the engine. It, or Attach, is called once, before the first Enter. The lock is held all
// along: what the engine tells the new share meanwhile waits until the allotment can answer.
func (a *Allotment) Join(session *engine.Session) (*engine.Pool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	share, err := session.NewPool(a)
	if err != nil {
		return nil, fmt.Errorf("passbuddy: %w", err)
	}
	a.fleet = share
	return share, nil
}

// Attach is Join for a fleet that is there already.
func (a *Allotment) Attach(f Fleet) {
	a.mu.Lock()
	a.fleet = f
	a.mu.Unlock()
}

// available is how many turns could be given now. It can be below zero for a
// moment, when a pool destroys connections on its own: the next returns make up for it.
//
// A connection being opened is covered by the turn of the caller that opens it. One whose
// caller gave up, or that the pool opens in the background, is covered by nobody and counts itself.
func (a *Allotment) available() int {
	uncovered := max(0, a.conns[opening]-(a.turns-a.conns[out]))
	return a.owned - a.turns - a.conns[leaving] - a.evicting - uncovered
}

// Enter takes a turn, waiting in the local queue while none is free. With claim, an idle
// connection comes with the turn where there is one; it is then out, and its pool must not
// hand it to anyone else.
//
// A turn that is not tied to a connection by [Conn.CheckOut] is given back with [Allotment.Exit].
func (a *Allotment) Enter(ctx context.Context, claim bool) (*Conn, error) {
	a.mu.Lock()
	if !a.closed && a.waiters.len() == 0 && a.debt == 0 && a.mayTake() {
		c := a.take(claim)
		a.mu.Unlock()
		return c, nil
	}
	w := &waiter{ready: make(chan struct{}), claim: claim}
	err := a.enterSlow(ctx, w)
	return w.conn, err
}

// EnterPool is Enter for a pool that picks the connection itself. It also reports whether the turn stands for
// a connection that is idle in that pool, or is about to be: the return that the turn came from may still be under way.
func (a *Allotment) EnterPool(ctx context.Context) (warm bool, err error) {
	w := &waiter{ready: make(chan struct{})}
	a.mu.Lock()
	err = a.enterSlow(ctx, w)
	return w.warm, err
}

// take gives a turn that is known to be available. The lock is held.
func (a *Allotment) take(claim bool) *Conn {
	if a.turns-a.conns[out] >= a.conns[idle] && a.dials() == 0 {
		a.dialling = time.Now()
	}
	a.turns++
	var c *Conn
	if claim {
		c = a.claim()
	}
	if a.offering {
		a.low = min(a.low, a.available())
	}
	return c
}

// enterSlow waits for a turn. It is entered with the lock held, and leaves without.
func (a *Allotment) enterSlow(ctx context.Context, w *waiter) error {
	if a.closed {
		a.mu.Unlock()
		return fmt.Errorf("passbuddy: %w", core.ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		a.mu.Unlock()
		return err
	}
	closing := a.closingOf(ctx)
	if isClosed(closing) {
		a.mu.Unlock()
		return ErrPoolClosed
	}
	if ctx.Value(urgentKey{a}) != nil {
		w.urgent = true
		a.waiters.pushFront(w)
	} else {
		a.waiters.push(w)
	}
	a.backlog.begin()
	a.miss()
	a.settle()
	began, returns := time.Now(), a.returns
	a.mu.Unlock()

	timer := time.NewTimer(a.left(ctx))
	defer timer.Stop()
	var cause error
	select {
	case <-w.ready:
		return w.err
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-closing:
	case <-timer.C:
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-w.ready:
		// Served while we were giving up. The turn goes to whoever is next; a connection that
		// came with it was never touched and is idle again.
		if w.err == nil {
			a.turns--
			if w.conn != nil {
				w.conn.become(idle)
				w.conn.parked = true // whoever it was claimed from has lost it
				w.conn = nil
			}
		}
	default:
		a.waiters.remove(w)
	}
	a.settle()
	if isClosed(closing) {
		return ErrPoolClosed
	}
	if err := a.refusal(ctx, cause); a.returns != returns || !errors.Is(err, core.ErrCapacity) {
		return err
	} else {
		return a.explainNested(err, time.Since(began))
	}
}

// refusal is the error of a caller that waited as long as it may; cause is nil for AcquireTimeout. It matches ErrUnavailable if Redis
// cannot be asked, ErrCapacity if the fleet was full, and then the context's error and its cause. A caller that hung up while nothing was
// known to be full gets the context's own error, as from a bare pool: who counts ErrCapacity to raise the capacity must not count those. The lock
// is held.
func (a *Allotment) refusal(ctx context.Context, cause error) error {
	reason := core.ErrCapacity
	if err := a.fleet.Err(); err != nil {
		reason = err
	} else if errors.Is(cause, core.ErrCapacity) {
		return cause // see OpenWithin
	} else if ctx.Err() != nil && cause != nil && !a.fleet.Full() {
		return ctx.Err()
	}
	if cause == nil {
		return fmt.Errorf("passbuddy: no connection permit within %v: %w", a.opts.AcquireTimeout, reason)
	}
	if err := ctx.Err(); err != nil && !errors.Is(cause, err) {
		return fmt.Errorf("passbuddy: gave up waiting for a connection permit: %w (%w: %w)", reason, err, cause)
	}
	return fmt.Errorf("passbuddy: gave up waiting for a connection permit: %w (%w)", reason, cause)
}

// Exit gives back a turn that is tied to no connection.
func (a *Allotment) Exit() {
	a.mu.Lock()
	if a.turns > a.conns[out] { // else another connection took it over: see CheckOut
		a.turns--
	}
	a.settle()
	a.mu.Unlock()
}
