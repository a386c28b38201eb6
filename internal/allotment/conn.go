package allotment

import (
	"context"
	"errors"
	"fmt"
	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
	"time"
)

type state uint8

const (
	opening state = iota
	idle
	out
	leaving
	gone
)

// ErrNoSpare is returned by [Allotment.Open] to one that would not wait: no permit is at hand.
var ErrNoSpare = errors.New("passbuddy: no connection permit is free for a background connection")

// Conn is one physical connection of the pool, from before its dial until its backend has ended.
type Conn struct {
	a      *Allotment
	permit *engine.Permit

	// Guarded by the allotment's lock.
	state      state
	lost       bool           // its lease is lost; it ends at the next occasion
	since      time.Time      // when it began to be opened, or to leave
	lapsed     *engine.Permit // with Options.Fence, if lost: the permit, which can be counted until we say that the backend is gone
	recorded   *Backend       // with Options.Fence: its backend, as Redis knows it
	swept      bool           // a sweep has seen it idle, at idleSeen
	idleSeen   time.Time
	pin        Pin
	parked     bool   // idle, and in no pool; see Park
	doubted    bool   // see Doubt
	epoch      uint32 // see Epoch
	prev, next *Conn  // in Allotment.idle: always when idle, maybe when out

	// Value is the integration's own. It is set before the Conn is shared, or with Attach.
	Value any
}

// become moves c to another state, keeping the counts and the idle ring. The lock is held.
func (c *Conn) become(s state) {
	a := c.a
	switch {
	case s == c.state:
	case c.state == idle:
		c.lift(s)
		if c.pin == Fixed {
			a.fixed--
		}
		if s >= leaving {
			c.unlink()
		}
	case s == idle:
		c.lay()
		if c.pin == Fixed {
			a.fixed++
		}
	default:
		a.conns[c.state]--
		a.conns[s]++
		c.state = s
		if s >= leaving {
			c.unlink()
		}
	}
}

// lift makes an idle c something else, and lay makes c idle, the first of the ring. Every warm checkout does both: they are short enough
// to be inlined, and leave the count of Fixed ones to become. A lifted c stays linked where it is, for it is mostly the
// first to come back too, and then no pointer is written; so the ring can hold some that are out. The lock is held.
func (c *Conn) lift(s state) {
	a := c.a
	c.parked, c.swept = false, false
	a.conns[idle]--
	a.conns[s]++
	c.state = s
}

func (c *Conn) lay() {
	a := c.a
	if a.idle.next != c {
		c.link()
	}
	a.conns[c.state]--
	a.conns[idle]++
	c.state = idle
}

// link makes c the first of the ring. The lock is held.
func (c *Conn) link() {
	c.unlink()
	a := c.a
	first := a.idle.next
	c.prev, c.next = &a.idle, first
	a.idle.next, first.prev = c, c
}

// unlink takes c out of the ring, if it is there. The lock is held.
func (c *Conn) unlink() {
	if c.next != nil {
		c.prev.next, c.next.prev = c.next, c.prev
		c.prev, c.next = nil, nil
	}
}

// dropStale lets go of spare permits whose lease cannot be proven any more, though nobody has said so yet: nothing may
// be opened under them. The lock is held.
func (a *Allotment) dropStale() {
	for i := len(a.spare) - 1; i >= 0; i-- {
		if p := a.spare[i]; p != nil && !p.Held() {
			a.spare = append(a.spare[:i], a.spare[i+1:]...)
			a.disown(p)
		}
	}
}

// bind puts a new connection under a spare permit. The lock is held.
func (a *Allotment) bind() *Conn {
	n := len(a.spare) - 1
	c := &Conn{a: a, permit: a.spare[n], state: opening}
	if !a.opts.Detached {
		c.since = time.Now()
	}
	a.spare = a.spare[:n]
	a.conns[opening]++
	a.all[c] = struct{}{}
	return c
}

// Open puts a new connection under a permit, before it is dialled. Its caller holds a turn, so a spare
// permit is there, or will be as soon as a connection that is leaving is gone, or an idle
// one is evicted for it. This is the last word on the invariant: it never opens one too many.
//
// What it returns must be ended with [Conn.Gone], also when the dial fails.
//
// With Options.Fence, Open asks Redis before a permit that has covered a backend covers the next
// one. A permit that turns out to be lost is then replaced by another: nothing was dialled under
// it, and the caller keeps its turn.
func (a *Allotment) Open(ctx context.Context) (*Conn, error) {
	for {
		c, err := a.open(ctx)
		if err != nil {
			return nil, err
		}
		err = c.vacate(ctx)
		if err == nil {
			return c, nil
		}
		c.Gone()
		if !errors.Is(err, core.ErrLost) {
			return nil, err
		}
	}
}

func (a *Allotment) open(ctx context.Context) (*Conn, error) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, fmt.Errorf("passbuddy: %w", core.ErrClosed)
	}
	urgent := ctx.Value(urgentKey{a}) != nil
	if urgent {
		a.unlend()
	}
	a.dropStale()
	if len(a.spare) > 0 && (a.openers.len() == 0 || urgent) {
		c := a.bind()
		a.mu.Unlock()
		return c, nil
	}
	closing := a.closingOf(ctx)
	if isClosed(closing) {
		a.mu.Unlock()
		return nil, ErrPoolClosed
	}
	w := &waiter{ready: make(chan struct{}), urgent: urgent}
	if urgent {
		a.openers.pushFront(w)
	} else {
		a.openers.push(w)
	}
	a.settle()
	a.mu.Unlock()

	select {
	case <-w.ready:
		return w.conn, w.err
	case <-ctx.Done():
	case <-closing:
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-w.ready:
		if w.err == nil {
			w.conn.end()
		}
	default:
		a.openers.remove(w)
	}
	a.settle()
	if isClosed(closing) {
		return nil, ErrPoolClosed
	}
	return nil, a.refusal(ctx, context.Cause(ctx))
}

// OpenNow is Open for a caller that has a turn, and nil where it would have to wait, to ask Redis
// (see Open), or to fail.
func (a *Allotment) OpenNow() *Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropStale()
	if a.closed || a.opts.Fence || len(a.spare) == 0 || a.openers.len() > 0 {
		return nil
	}
	return a.bind()
}

// OpenBackground is Open for a connection that nobody waits for. It never waits itself, takes no
// permit from a local caller, and returns ErrNoSpare when none is free. p, if not nil, is a permit
// acquired for it. With Options.Fence it asks Redis, as Open does.
func (a *Allotment) OpenBackground(ctx context.Context, p *engine.Permit) (*Conn, error) {
	c, err := a.openBackground(p)
	if err != nil {
		return nil, err
	}
	if err := c.vacate(ctx); err != nil {
		c.Gone()
		return nil, err
	}
	return c, nil
}

func (a *Allotment) openBackground(p *engine.Permit) (*Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p != nil {
		a.owned++
		a.spare = append(a.spare, p)
	}
	a.dropStale()
	if a.closed || a.waiters.len() > 0 || a.openers.len() > 0 || len(a.spare) == 0 || a.available() <= 0 {
		a.settle()
		return nil, ErrNoSpare
	}
	return a.bind(), nil
}

// Ready tells that c was opened and lies in the pool, or is about to be checked out.
func (c *Conn) Ready() {
	a := c.a
	a.mu.Lock()
	if c.state == opening {
		c.connected()
		c.become(idle)
		a.settle()
	}
	a.mu.Unlock()
}

// CheckOut ties the caller's turn to c. It reports false if c must not be used: it was evicted, or
// its lease is lost; the turn then stays with the caller.
//
// Turns have no names, so turns >= out is all that says whether there is one to tie. Where there is none, the pool hands
// c out past the queue (pgxpool's AcquireAllIdle), and c brings a turn of its own, available or not. Should such a c take
// the turn of a caller who is on his way to another connection, that one brings its own instead: the sum is the same.
func (c *Conn) CheckOut() bool {
	a := c.a
	a.mu.Lock()
	ok := (c.state == idle || c.state == opening) && !c.lost && !a.closed
	if ok {
		if a.turns == a.conns[out] {
			a.turns++
		}
		if c.state == idle {
			c.lift(out)
		} else {
			c.connected()
			c.become(out)
			if a.waiters.n > 0 {
				a.settle() // another may be dialled
			}
		}
	}
	a.mu.Unlock()
	return ok
}

// Usable reports whether c may be handed out: not evicted, and its lease not lost.
func (c *Conn) Usable() bool {
	a := c.a
	a.mu.Lock()
	ok := c.state < leaving && !c.lost
	a.mu.Unlock()
	return ok
}

// Return ends the checkout of c and its turn. It reports whether c stays in the pool; if not, c is
// leaving, and its owner must close it. healthy is false for a connection that is to be closed anyway.
func (c *Conn) Return(healthy bool) bool {
	a := c.a
	a.mu.Lock()
	if c.state == out {
		a.turns--
		a.returns++
		if healthy && !c.lost && c.permit != nil && a.debt == 0 && a.evicting == 0 && !a.closed {
			c.lay()
			if a.waiters.n > 0 || a.openers.n > 0 || a.wanted && (!a.offering || a.available() > 1) {
				a.settle()
			}
			a.mu.Unlock()
			return true
		}
	}
	keep := c.returnSlow(healthy)
	a.settle()
	a.mu.Unlock()
	return keep
}

// returnSlow decides about a connection that has no turn any more. The lock is held.
func (c *Conn) returnSlow(healthy bool) bool {
	a := c.a
	switch {
	case c.state >= leaving:
		return false
	case !healthy || c.lost || a.closed || a.mustCountIn(c):
		c.leave()
		return false
	case a.evicting > 0:
		c.leave()
		return false
	case a.debt > 0:
		a.debt--
		a.due++
		c.since = time.Now()
		c.become(leaving)
		return false
	case c.state == out:
		c.become(idle)
	}
	return true
}

// Leave tells that c is being closed, by whoever decided it. Its permit comes back with Gone.
func (c *Conn) Leave() {
	a := c.a
	a.mu.Lock()
	if c.state == out {
		a.turns--
		a.returns++
	}
	if c.state < leaving {
		c.leave()
		a.settle()
	}
	a.mu.Unlock()
}

// leave moves c to leaving. Where one was set aside for the fleet and is still being looked for, c is it.
// Its turn, if any, has ended. The lock is held.
func (c *Conn) leave() {
	a := c.a
	c.failed()
	if a.evicting > 0 {
		a.evicting--
		a.due++
	}
	c.since = time.Now()
	c.become(leaving)
}

// failed notes that c ends before it was ever connected: its dial failed, or what followed it. The
// move of its permit has ended with that. The lock is held.
func (c *Conn) failed() {
	if c.state == opening && !c.a.opts.Detached {
		c.a.failing = true
		c.a.moved(c.a.costs.move())
	}
}

// Evict makes an idle c leave, if an idle connection has to end at all. The caller must then close it.
func (c *Conn) Evict() bool {
	a := c.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.state != idle || !a.mustEvict() {
		return false
	}
	c.leave()
	a.settle()
	return true
}

// EvictIdle is Evict for the connection that has been idle longest and may be closed from outside, or nil.
func (a *Allotment) EvictIdle() *Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.mustEvict() {
		return nil
	}
	for c := a.idle.prev; c != &a.idle; c = c.prev {
		if c.state == idle && c.pin != Fixed {
			c.leave()
			a.settle()
			return c
		}
	}
	return nil
}

// Gone tells that the backend of c has ended, or was never started: its permit is free for another
// connection, here or elsewhere. It may be called more than once.
func (c *Conn) Gone() {
	a := c.a
	a.mu.Lock()
	if c.state != gone {
		c.end()
		a.settle()
	}
	a.mu.Unlock()
}

// end takes c out of the allotment. The lock is held.
func (c *Conn) end() {
	a := c.a
	switch {
	case c.doubted || a.opts.Detached: // what the network has lost says nothing about what a close takes
	case c.state == leaving:
		smooth(&a.costs.end, time.Since(c.since))
	}
	c.failed()
	if c.state == out {
		a.turns-- // closed while checked out, or hijacked: no return will follow, or it finds c gone
		a.returns++
	}
	c.become(gone)
	delete(a.all, c)
	a.undoubt(c)
	switch {
	case c.permit == nil && c.lost: // its permit was lost and is already disowned
		a.owned--
		if c.lapsed != nil {
			a.fleet.Give(c.lapsed)
			c.lapsed = nil
		}
	case c.permit == nil && !a.closed && !a.mustCountIn(c): // uncounted, and its place can be used again
		a.spare = append(a.spare, nil)
	case c.permit == nil:
		a.disown(nil)
	case a.due > 0 || a.closed:
		a.due = max(0, a.due-1)
		a.disown(c.permit)
	default:
		a.spare = append(a.spare, c.permit)
		if a.opts.Detached {
			a.kept = time.Now()
		}
	}
	a.due = min(a.due, a.conns[leaving]) // each is paid by one that is leaving, but not by one whose lease was lost
	c.permit = nil
}

// Sweep makes parked connections leave that have lain untouched, since a sweep at least maxIdle
// ago, and returns them for closing. It also reports whether others stay parked.
func (a *Allotment) Sweep(maxIdle time.Duration) (old []*Conn, more bool) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := a.idle.next; c != &a.idle; {
		next := c.next
		switch {
		case c.state != idle || !c.parked:
		case maxIdle > 0 && !c.swept:
			c.swept, c.idleSeen = true, now
			more = true
		case maxIdle > 0 && now.Sub(c.idleSeen) < maxIdle:
			more = true
		default:
			c.leave()
			old = append(old, c)
		}
		c = next
	}
	if old != nil {
		a.settle()
	}
	return old, more
}
