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
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// Fleet is what an allotment asks of the engine. [*semaphore.Share] is one.
// No method blocks, and each may be called with the allotment's lock held.
type Fleet interface {
	Ask(n int)                // want n permits more; a level, not an increment
	Give(p *semaphore.Permit) // release it, off the caller's path
	Offer(n int)              // n units lie idle: does anyone need them?
	Full() bool               // Redis has answered the last Ask, and had nothing free
	Err() error               // why the engine cannot ask Redis now, or nil
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
	// A unit must lie unused for as long as a move costs before it is offered to the fleet, within these bounds: a loop that
	// thinks for a moment between two queries keeps its connection. That doubles, up to 16 times, when what was given is missed
	// within four times as long, and halves with every patienceCalm in which nothing was: callers who think for longer do not
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
	owned     int                 // permits, spare or under a connection
	spare     []*semaphore.Permit // under no connection; nil is a permit this process gave itself
	uncounted int                 // of owned: those without a permit of the fleet (FallbackConns, KeepOnLoss)
	turns     int
	conns     [gone + 1]int // connections by state
	fixed     int           // of the idle ones: those that only their pool can use or end; see Pin
	deferred  []time.Time   // when the recalls fall due that are not due yet, the earliest first
	ahead     ahead
	debt      int
	evicting  int
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
	unused    time.Duration // for how long no unit at all has been in use, as far as offers were considered
	costs     costs
	ready     time.Time // when a connection was last opened
	failing   bool      // the last dial failed
	dialling  time.Time // since when connections are being opened without a break
	backlog   backlog
	again     *time.Timer // settles, at againAt: see settleIn
	againAt   time.Time
	kept      time.Time // Detached: when a permit was last in use
	outside   int       // connections taken out of the pool for good, beyond its MaxConns: see SetOutside
	granted   time.Time // when the last grant arrived
	back      time.Time // when Redis came back after it could not be asked
	closed    bool
}

// New returns an allotment without permits. Attach must follow before it is used.
func New(pool Pool, opts Options) *Allotment {
	a := &Allotment{pool: pool, opts: opts, all: make(map[*Conn]struct{})}
	a.idle.prev, a.idle.next = &a.idle, &a.idle
	return a
}

// Join connects the allotment to the engine. It, or Attach, is called once, before the first Enter. The lock is held all
// along: what the engine tells the new share meanwhile waits until the allotment can answer.
func (a *Allotment) Join(sem *semaphore.Semaphore) (*semaphore.Share, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	share, err := sem.NewShare(a)
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
		return fmt.Errorf("passbuddy: %w", semaphore.ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		a.mu.Unlock()
		return err
	}
	if ctx.Value(urgentKey{}) != nil {
		a.waiters.pushFront(w)
	} else {
		a.waiters.push(w)
	}
	a.backlog.begin()
	a.miss()
	a.settle()
	a.mu.Unlock()

	timer := time.NewTimer(a.left(ctx))
	defer timer.Stop()
	var cause error
	select {
	case <-w.ready:
		return w.err
	case <-ctx.Done():
		cause = context.Cause(ctx)
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
	return a.refusal(ctx, cause)
}

// refusal is the error of a caller that waited as long as it may; cause is nil for AcquireTimeout. It matches ErrUnavailable if Redis
// cannot be asked, ErrCapacity if the fleet was full, and then the context's error and its cause. A caller that hung up while nothing was
// known to be full gets the context's own error, as from a bare pool: who counts ErrCapacity to raise the capacity must not count those. The lock
// is held.
func (a *Allotment) refusal(ctx context.Context, cause error) error {
	reason := semaphore.ErrCapacity
	if err := a.fleet.Err(); err != nil {
		reason = err
	} else if errors.Is(cause, semaphore.ErrCapacity) {
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

// settle brings the allotment to rest after a change: it pays debts, serves those who
// wait, gives back what nobody here can use, and tells the fleet what is still wanted.
// Everything that changes a counter ends with it. The lock is held.
func (a *Allotment) settle() {
	a.dropStale()
	a.fallDue()
	a.debt = min(a.debt, max(0, a.owned-a.due-a.evicting)) // what was lost cannot be given
	for a.debt > 0 && a.available() > 0 {
		a.debt--
		if len(a.spare) > 0 {
			a.giveSpare()
		} else {
			a.evicting++
		}
	}
	for a.openers.len() > 0 && len(a.spare) > 0 {
		w := a.openers.pop()
		w.conn = a.bind()
		close(w.ready)
	}
	served := 0
	for a.waiters.len() > 0 && (a.mayTake() || a.available() <= a.fixed && a.fallBack()) {
		w := a.waiters.pop()
		// Callers that are on their way take as many spare permits as there are, and open. So this one is to have an idle connection.
		w.warm = a.turns-a.conns[out] >= len(a.spare)+a.conns[opening]
		w.conn = a.take(w.claim)
		close(w.ready)
		served++
	}
	if served > 0 || !a.backlog.since.IsZero() {
		a.backlog.serve(served, a.waiters.len())
	}
	if a.waiters.len() > 0 && a.available() > a.fixed {
		a.settleIn(dialEvery)
	}
	// A permit without a connection is of use only to a caller that is about to open one:
	// what is free beyond the idle connections goes back.
	for len(a.spare) > 0 && a.openers.len() == 0 && a.available() > a.conns[idle]+a.waiters.len() && !a.keeps() {
		a.payFreely()
		a.giveSpare()
	}
	if !a.searching && a.mustEvict() {
		a.searching = true
		go a.search()
	}
	a.ask()
	a.considerOffer()
}

// ask tells the engine how many permits are missing: one for each caller in the queue that it pays for (see cost.go) and its pool has room for,
// one for each connection that lives without and one for each turn that has lost its unit (those two only
// while there is a Redis to ask). The lock is held.
func (a *Allotment) ask() {
	n, again := a.paying()
	if again > 0 {
		a.settleIn(again)
	}
	if n > 0 && a.opts.MaxConns > 0 {
		n = min(n, max(0, a.opts.MaxConns+a.outside-(a.owned-a.due-a.evicting)))
	}
	if missing := a.uncounted + a.lacking(); missing > 0 && a.fleet.Err() == nil {
		n += missing
	}
	a.fleet.Ask(n)
}

// settleIn settles again after d, or earlier. The lock is held.
func (a *Allotment) settleIn(d time.Duration) {
	d = max(d, time.Millisecond)
	at := time.Now().Add(d)
	if a.again != nil {
		if !at.Before(a.againAt) {
			return
		}
		a.again.Stop() // should it run all the same, it settles once more
	}
	a.againAt = at
	a.again = time.AfterFunc(d, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.againAt.Equal(at) {
			a.again = nil
		}
		if !a.closed {
			a.settle()
		}
	})
}

// keeps reports whether a permit that covers no connection stays for the next caller, who would else ask Redis for it. The lock is held.
func (a *Allotment) keeps() bool {
	if !a.opts.Detached || a.closed {
		return false
	}
	rest := keepDetached - time.Since(a.kept)
	if rest > 0 {
		a.settleIn(rest)
	}
	return rest > 0
}

// lacking is how many turns have nothing to stand on, because a spare permit or an idle connection that was free
// when they were given has lost its lease since. What is leaving comes back, so it is not missing. The lock is held.
func (a *Allotment) lacking() int {
	if a.openers.len() == 0 {
		return 0
	}
	return max(0, a.turns+a.evicting+a.due-a.owned)
}

// SetOutside tells how many connections live outside the pool for good (pgxpool's Hijack): they do not count
// against Options.MaxConns.
func (a *Allotment) SetOutside(n int) {
	a.mu.Lock()
	if n != a.outside {
		a.outside = n
		a.settle()
	}
	a.mu.Unlock()
}

// Crowded reports whether callers wait only because the pool may hold no more connections, and how many are out.
func (a *Allotment) Crowded() (n int, yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conns[out], a.opts.MaxConns > 0 && a.waiters.len() > 0 && a.owned >= a.opts.MaxConns+a.outside
}

// fallBack lets one more connection be opened without a permit, where FallbackConns allows it
// and Redis cannot be asked. The lock is held.
func (a *Allotment) fallBack() bool {
	if a.owned >= a.opts.FallbackConns || a.fleet.Err() == nil {
		return false
	}
	a.uncounted++
	a.owned++
	a.spare = append(a.spare, nil)
	return true
}

// giveSpare hands the newest spare permit to the fleet. The lock is held.
func (a *Allotment) giveSpare() {
	n := len(a.spare) - 1
	p := a.spare[n]
	a.spare = a.spare[:n]
	a.disown(p)
}

// disown drops one permit from those owned and releases it; nil stands for one that
// this process gave itself. The lock is held.
func (a *Allotment) disown(p *semaphore.Permit) {
	a.owned--
	if p == nil {
		a.uncounted--
		return
	}
	a.fleet.Give(p)
}

// mustEvict reports whether an idle connection has to end: because one was set aside for the fleet, because
// an opener waits for its permit, or because a caller waits who can have no idle one, as only their pool can end those (Pin). The
// second is an opener that found nothing idle in its pool although, by our count, a connection was just being returned. The lock is held.
func (a *Allotment) mustEvict() bool {
	return a.evicting > 0 ||
		(a.conns[idle] > 0 && a.openers.len() > a.conns[leaving]-a.due) ||
		(a.fixed > 0 && a.waiters.len() > 0)
}

// search ends idle connections while any has to end. It can come too early: a
// pool's return hook runs just before the connection is idle in it. It then tries again, unless
// a return has paid in the meantime.
func (a *Allotment) search() {
	pause := evictAgain
	for {
		a.mu.Lock()
		if a.closed || !a.mustEvict() {
			a.searching = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		if a.pool.Evict() {
			pause = evictAgain
			continue
		}
		time.Sleep(pause)
		pause = min(2*pause, evictAgainMost)
	}
}
