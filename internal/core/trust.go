package core

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Trust. The session trusts a lease for TTL less a margin, on the local monotonic clock, from
// before it sent the request that made or renewed it. However late the reply is, Redis cannot have
// started the lease before that.
//
//	sent              reply                    trusted until     expires in Redis
//	 |--- on its way ---|                            |                 |
//	 |<---------------- TTL - margin --------------->|<--- margin ---->|
//	      |<--------------------------- TTL -------------------------->|
//
// The margin is for what the holder does when it loses a lease: end a connection, stop its work. A
// step of Redis's clock that goes unnoticed takes up to eight tenths of it (state.lua).
//
// A pushed grant has no request. It counts from anchor.bound, the earliest local time at which Redis
// can have made it.

// State is where a permit is in its life:
//
//	          granted            Release
//	Fresh ----------------> Held ---------> Released
//	  |                      |                 ^
//	  |                      | its time, or    | Release
//	  |                      | Redis's answer  |
//	  |                      v                 |
//	  |                     Lost --------------+
//	  +--> Released: its request was withdrawn or refused
//
// A permit is held once. Each has a UUID of its own, so a release that was delayed on its way can
// never end a later lease.
type State uint8

// The states of a permit.
const (
	Fresh State = iota
	Held
	Lost
	Released
)

// A Permit is one unit of the capacity, under one UUID.
type Permit struct {
	ID    string
	Pool  *Pool // the connection pool it belongs to, or nil
	Owner any   // the shell's

	state   State
	trusted time.Duration // until when it is held though Redis stays silent
	calls   uint64        // the last call of the heartbeat that names it

	tag     string // of the backend that it covers, "" if of none
	records uint32 // how often Redis was to be told which backend that is, or that there is none
	vacant  bool   // Redis has confirmed that there is none
}

// State is where p is in its life.
func (p *Permit) State() State { return p.state }

// TrustedUntil is until when p is held even if Redis stays silent, 0 if it is not held.
func (p *Permit) TrustedUntil() time.Duration { return p.trusted }

// granted takes grants. They count from since: when their batch was sent, or anchor.bound for a
// push.
func (c *Core) granted(now time.Duration, ids []string, since time.Duration) {
	trusted := since + c.cfg.TTL - c.cfg.Margin
	var byPool map[*Pool][]*Permit
	var order []*Pool
	var hasty []*Permit
	for _, id := range ids {
		if p := c.permits[id]; p != nil { // an extension, or told twice
			r := c.asked[id]
			if max(p.trusted, trusted) <= now { // the process slept, and Tick is about to find that
				c.lose(now, p)
				if r != nil {
					c.settle(now, r, fmt.Errorf("%w", ErrLost))
				}
				continue
			}
			c.trust(p, trusted)
			if r != nil && since >= r.since { // else an older grant, pushed, that extends nothing
				c.settle(now, r, nil)
			}
			if p.trusted-now < c.roundTrip*4/3 {
				hasty = append(hasty, p)
			}
			continue
		}
		r := c.asked[id]
		switch {
		case r == nil && c.lost[id] > 0: // the lease was extended, and is left to expire: see lose
			continue
		case r == nil:
			c.drop(now, id) // it crossed a withdrawal
			c.gaveBack = true
			c.flush(now)
			continue
		case r.Extends: // the lease was lost while this was on its way, and stays lost
			c.settle(now, r, fmt.Errorf("%w", ErrLost))
			continue
		case trusted-now <= c.worthHolding():
			// The grant took so long to arrive that the lease may be over, or will be before Redis
			// could answer a renewal. Ask again, under the same UUID.
			c.enqueue(r)
			c.flush(now)
			continue
		}
		var got []*Permit
		for i, p := range r.Permits {
			if r.Pool == nil || slices.Contains(ids, r.ids[i]) {
				c.hold(now, p, trusted)
				if trusted-now < c.allowance() {
					hasty = append(hasty, p)
				}
				got = append(got, p)
			}
		}
		if pool := r.Pool; pool != nil {
			if byPool == nil {
				byPool = make(map[*Pool][]*Permit)
			}
			if byPool[pool] == nil {
				order = append(order, pool)
			}
			byPool[pool] = append(byPool[pool], got...)
			pool.moving = pool.moving || r.waited
		}
		c.settle(now, r, nil)
	}
	for _, pool := range order {
		c.tell(Event{Kind: Granted, Pool: pool, Permits: byPool[pool]})
	}
	// These grants were long on their way. The heartbeat will renew them, but perhaps over a
	// connection that it has to open first. The next batch asks for an extension, and arrives
	// earlier.
	for _, p := range hasty {
		if c.asked[p.ID] == nil && !c.closed {
			c.Submit(now, &Request{Kind: message.Hold, Permits: []*Permit{p}, Extends: true})
		}
	}
}

// worthHolding is the least trust with which the session takes a new grant. With less than one
// round trip of trust a renewal would come too late, so the session asks for the grant again,
// unless that cannot arrive with more.
func (c *Core) worthHolding() time.Duration {
	if rtt := c.heart.rtt; 2*rtt < c.cfg.TTL-c.cfg.Margin {
		return rtt
	}
	return 0
}

// hold makes p held until trusted.
func (c *Core) hold(now time.Duration, p *Permit, trusted time.Duration) {
	p.state = Held
	c.trust(p, trusted)
	c.permits[p.ID] = p
	if p.Pool != nil {
		p.Pool.held++
		p.Pool.everHeld = true
	}
	if c.expireAt == 0 || trusted < c.expireAt {
		c.expireAt = trusted
	}
	if c.heart.due > 0 && trusted-c.allowance() < c.heart.due {
		c.schedule(now)
	}
}

// trust extends how long p is held. It never shortens it.
func (c *Core) trust(p *Permit, until time.Duration) {
	if until > p.trusted {
		p.trusted = until
		c.fx.Trust = append(c.fx.Trust, p)
	}
}

// expire loses the permits that can no longer be proven. It does not depend on the heartbeat, which
// may be stuck.
func (c *Core) expire(now time.Duration) {
	c.expireAt = 0
	var over []*Permit
	for _, p := range c.permits {
		switch {
		case p.trusted <= now:
			over = append(over, p)
		case c.expireAt == 0 || p.trusted < c.expireAt:
			c.expireAt = p.trusted
		}
	}
	c.loseAll(now, over)
}

// loseAll loses permits in the order of their UUIDs: the same history has the same effects.
func (c *Core) loseAll(now time.Duration, permits []*Permit) {
	slices.SortFunc(permits, func(a, b *Permit) int { return cmp.Compare(a.ID, b.ID) })
	for _, p := range permits {
		c.lose(now, p)
	}
}

// lose makes p lost. Redis is not told: the connection or the work under it may still be there, so
// the lease is left to expire, unless it is released.
//
// Two messages that are on their way can name p afterwards: the late push of its grant, or the
// reply to a repeat of its request, which a push had settled. That is no grant which crossed a
// withdrawal. To drop it would free the lease that Redis has just extended, under a connection that
// may still be there.
func (c *Core) lose(now time.Duration, p *Permit) {
	c.endTrust(now, p)
	c.justLost = append(c.justLost, p.ID)
	c.counts.Lost++
	c.incidents.lost++
	if p.Pool == nil {
		c.fx.Observed = append(c.fx.Observed, message.ObservedLoss)
	} else {
		p.Pool.held--
		c.tell(Event{Kind: LeaseLost, Pool: p.Pool, Permits: []*Permit{p}})
	}
	c.madeRoom(now)
}

// endTrust makes p lost. The session knows that for two leases: what was on its way has come by then.
func (c *Core) endTrust(now time.Duration, p *Permit) {
	delete(c.permits, p.ID)
	c.lost[p.ID] = now + 2*c.cfg.TTL
	p.state, p.trusted = Lost, 0
	c.fx.Trust = append(c.fx.Trust, p)
}

// LoseIfOver loses p if its trust is over and Tick is about to find that.
func (c *Core) LoseIfOver(now time.Duration, p *Permit) {
	if p.state == Held && p.trusted <= now {
		c.lose(now, p)
	}
}

// NotHeld loses p, which Redis does not know. The session may have slept: a call shows what else is
// lost.
func (c *Core) NotHeld(now time.Duration, p *Permit) {
	if c.permits[p.ID] == p {
		c.lose(now, p)
	}
	c.BeatSoon()
}
