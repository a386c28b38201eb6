package core

import (
	"fmt"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A Request asks for permits:
//
//	below Max --> outbox --> in flight --> in Redis's queue --> settled
//	                ^                           |
//	                +---------------------------+  asked for again: every RetryInterval,
//	                                               when a reply said that a lease
//	                                               would end, after a reconnect
//
// It is in Core.asked, under each of its UUIDs, until it is settled. A grant that arrives for a
// UUID that is not there crossed a withdrawal, and is dropped.
type Request struct {
	Kind    message.Kind
	Permits []*Permit
	Pool    *Pool         // for kind Pool: any number of the permits can be granted
	Extends bool          // the permit is held, and stays so if this is withdrawn
	Done    chan struct{} // the shell's

	err      error
	ids      []string
	number   uint64        // requests are numbered in the order in which they are submitted
	since    time.Duration // when it was submitted
	settled  bool
	belowMax bool // waits for room below Config.Max
	queued   bool // in the outbox
	sent     bool // Redis may know it
	answered bool // Redis does
	waited   bool // an answer left it in Redis's queue
	full     bool // the last answer found no permit free
	noMemory bool // the last answer had no memory for it
}

// Settled reports whether r has ended, and how.
func (r *Request) Settled() (bool, error) { return r.settled, r.err }

// Submit asks for what r wants. Where Config.Max leaves no room, r waits behind others.
func (c *Core) Submit(now time.Duration, r *Request) {
	c.made++
	r.number, r.since = c.made, now
	for _, p := range r.Permits {
		r.ids = append(r.ids, p.ID)
	}
	for _, id := range r.ids {
		c.asked[id] = r
	}
	if c.cfg.Max > 0 && !r.Extends && !c.admit(now, r) {
		return
	}
	c.enqueue(r)
	c.flush(now)
}

// TryPatience bounds the wait for a request that does not wait in Redis's queue. It allows one
// lease from when the request is sent: a later answer would be worth nothing. Before that, the
// request may have to wait for the reply to the batch in flight.
func (c *Core) TryPatience() time.Duration {
	return c.cfg.TTL + min(2*c.heart.rtt, c.cfg.TTL)
}

// GiveUp takes r back, because its caller waits no longer. The error is why r was not granted, and
// nil if r has extended the lease that it was to extend. A grant that crossed the end of the
// caller's patience goes back.
func (c *Core) GiveUp(now time.Duration, r *Request, waited time.Duration) error {
	if r.settled && r.err != nil {
		return r.err
	}
	reason := fmt.Errorf("%w: %q", c.AtCapacity(now), c.cfg.Base)
	if waited > 0 {
		reason = fmt.Errorf("%w: %q granted nothing within %v", c.AtCapacity(now), c.cfg.Base, waited)
	}
	switch {
	case r.belowMax:
		reason = fmt.Errorf("%w: this session holds Config.Max, %d", ErrCapacity, c.cfg.Max)
	case c.down != nil:
		reason = Unavailable(c.down)
	case r.noMemory:
		reason = Unavailable(errNoMemory)
	case !r.answered:
		reason = Unavailable(errSilent)
	}
	switch {
	case r.settled && r.Extends:
		return nil
	case r.settled:
		for _, p := range r.Permits {
			c.Release(now, p)
		}
	default:
		c.withdraw(now, r, ErrCapacity)
	}
	return reason
}

// enqueue puts r into the outbox, if it is not there.
func (c *Core) enqueue(r *Request) {
	if !r.queued {
		r.queued = true
		c.outbox = append(c.outbox, r)
	}
}

// without takes r out of list.
func without(list []*Request, r *Request) []*Request {
	return slices.DeleteFunc(list, func(other *Request) bool { return other == r })
}

// settle ends r. If r extends a permit, a later request may do so, too, and have taken its place in
// asked: that one goes on.
func (c *Core) settle(now time.Duration, r *Request, err error) {
	r.settled = true
	r.err = err
	for _, id := range r.ids {
		if c.asked[id] == r {
			delete(c.asked, id)
		}
	}
	if r.Pool != nil && r.Pool.request == r {
		r.Pool.request = nil
	}
	c.fx.Settled = append(c.fx.Settled, r)
	c.settleBelowMax(now, r)
}

// withdraw takes back a request that is not settled, and its caller gets err. It takes r out of the
// outbox, and out of Redis if Redis may know it. The drop is sent after every batch that holds the
// request.
func (c *Core) withdraw(now time.Duration, r *Request, err error) {
	if r.settled {
		return
	}
	c.settle(now, r, err)
	if r.queued {
		c.outbox = without(c.outbox, r)
		r.queued = false
	}
	if !r.sent || r.Extends {
		return
	}
	if r.Kind == message.Pool {
		c.drop(now, r.ids[:1]...) // what stands in the queue
		c.drop(now, r.ids[1:]...)
	} else {
		c.drop(now, r.ids...)
	}
	c.flush(now)
}

// A Drop is a release, or the withdrawal of a request, on its way.
type Drop struct {
	Err  error         // of the first try
	Done chan struct{} // the shell's, nil if nobody waits for the outcome

	ids []string
	// plain: it is one permit that no pool holds, and cannot be waiting in the queue.
	plain bool
	// covered: its permit covered a backend, so Redis may count it on after its lease.
	covered bool
	since   time.Duration // when it was asked for; after a lease there is nothing left to drop
	known   bool          // the outcome of the first try is
}

// drop puts the removal of permits, or of the request they form, among what is to be sent.
func (c *Core) drop(now time.Duration, ids ...string) *Drop {
	d := &Drop{ids: ids, since: now}
	if len(ids) > 0 {
		c.drops = append(c.drops, d)
	}
	return d
}

// outcome notes how the first try of d went.
func (c *Core) outcome(d *Drop, err error) {
	if !d.known {
		d.known, d.Err = true, err
		if d.Done != nil {
			c.fx.Dropped = append(c.fx.Dropped, d)
		}
	}
}

// askForMinimum asks again for the requests that have waited longest in Redis's queue, for as many
// permits as the minimum lacks. Redis keeps for the session what it has given back below its
// minimum, even if its requests are behind others. A request that asks now goes before them.
// Otherwise nobody would have the permit until the session asks again after RetryInterval. A
// request for more than the minimum lacks would not be granted for that.
func (c *Core) askForMinimum() {
	lacks := int(c.min) - len(c.permits)
	if lacks <= 0 {
		return
	}
	for _, r := range c.Unsettled() {
		n := len(r.ids)
		if r.Pool != nil { // it takes any number
			n = min(n, lacks)
		}
		if lacks > 0 && n <= lacks && !r.belowMax && !r.Extends && r.Kind != message.Try {
			lacks -= n
			c.enqueue(r)
		}
	}
	c.sortOutbox()
}

// Release frees p, whether it is held or lost. It does nothing for one that is neither.
func (c *Core) Release(now time.Duration, p *Permit) *Drop {
	was := p.state
	if was != Held && was != Lost {
		return nil
	}
	p.state, p.trusted = Released, 0
	delete(c.lost, p.ID)
	c.fx.Trust = append(c.fx.Trust, p)
	if was == Held {
		delete(c.permits, p.ID)
		if p.Pool != nil {
			p.Pool.held--
		}
		c.madeRoom(now)
		c.gaveBack = true
	}
	d := c.drop(now, p.ID)
	d.plain, d.covered = p.Pool == nil, p.records > 0
	c.flush(now)
	return d
}
