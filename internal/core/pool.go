package core

import (
	"errors"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A Pool is one connection pool's part of the session. Redis divides the capacity between the
// fleet's pools by max-min fairness. A pool that waits is served before one that holds more. The
// largest pool gives back to one that has at least two fewer.
//
// A pool has a number in its session, and with that a name in Redis, only while it needs them:
//
//	     Ask, Try, Stay            a heartbeat has said that it holds and asks for nothing,
//	away ----------------> seated --------------------------------------------------------> away
//	                                  and none that said otherwise is on its way any more
//
// So nothing stays of a pool that its owner has closed or forgotten, even if it does not tell the
// session: pgx has no hook for Pool.Close. A pool that comes back may have another number.
type Pool struct {
	Owner any // the shell's

	seated bool
	number int    // while it is seated
	name   string // the same
	stays  bool   // see Stay
	// numberAt is when it asks again for a number, because none was free; 0: it has no need.
	numberAt time.Duration
	trying   int // requests that do not wait, under way
	want     int
	request  *Request // the one that waits, or nil
	held     int
	everHeld bool          // it was granted a permit, once
	heard    message.Tally // of recalls
	anew     int           // how often that was set back: see HearAnew
	forgets  int           // events of kind Forget that its owner has not been told yet
	// moving: a permit was granted to it from the queue, and it has not said since that it is
	// connected. See Moved.
	moving     bool
	withdrawAt time.Duration // when its request is withdrawn if it wants nothing then; 0: it does
	known      bool          // Redis may know it
	said       uint64        // the last call of the heartbeat that spoke of it as open, or holding
}

// Held is how many permits p holds.
func (p *Pool) Held() int { return p.held }

// A vacancy is the number of a pool that is away. The next pool with that number begins with the
// tally that was heard last: Redis goes on counting. No permit's UUID is used twice, because the
// count that follows the number in it never repeats.
type vacancy struct {
	number int
	heard  message.Tally
}

// withdrawAfter is how long a request outlives its last local waiter. Waiters come and go with
// every query of a busy pool; asking and withdrawing each time would send two commands for each.
const withdrawAfter = 25 * time.Millisecond

// An Event is news that the shell has to tell a pool.
type Event struct {
	Kind    EventKind
	Pool    *Pool
	Permits []*Permit     // Granted, LeaseLost
	N       int           // MakeRoom
	After   time.Duration // MakeRoom, Told
	Waiting bool          // Waiting: whether anyone in the fleet waits

	// Told, Forget: a tally of recalls to the pool of that name, in the state of that epoch. See
	// Hear.
	Name, Epoch string
	Tally       message.Tally
	Offered     bool // it answers an offer
	anew        int  // Pool.anew when the call was made that this answers
}

// An EventKind is the kind of an Event.
type EventKind uint8

// The kinds of events.
const (
	Granted   EventKind = iota // permits asked for have arrived
	LeaseLost                  // its lease can no longer be proven
	Told                       // it was told a tally of recalls
	Forget                     // recalls are counted anew, from a tally; what was owed is forgotten
	MakeRoom                   // another pool of this session needs a permit: see max.go
	Waiting                    // whether anyone in the fleet waits
	Changed                    // Redis went away, or came back, or ran out of memory
	Closing                    // the session is being closed: give everything back
)

func (c *Core) tell(e Event) { c.fx.Events = append(c.fx.Events, e) }

// tellAll tells every pool of e.
func (c *Core) tellAll(e Event) {
	for _, p := range c.pools {
		e.Pool = p
		c.tell(e)
	}
}

// tellWaiting tells the pools whether any request waits in Redis's queue, as answered to what was
// sent at that time. If a push has said since that a request waits, an answer that says otherwise
// is old.
func (c *Core) tellWaiting(waiting bool, sent time.Duration) {
	if waiting || c.toldAt < sent {
		c.tellAll(Event{Kind: Waiting, Waiting: waiting})
	}
}

// ErrManyPools is returned to a pool for which there is no number.
var ErrManyPools = errors.New("semaphore: a session can have 4095 connection pools " +
	"that hold or want something at a time, and those that did so since the last heartbeat count")

// HasNumber reports whether a pool could have a number now.
func (c *Core) HasNumber() bool { return c.numbers < maxPools || len(c.vacant) > 0 }

// Join seats p, if it has no number and there is one, and reports whether it has one now.
func (c *Core) Join(p *Pool) bool {
	if p.seated {
		return true
	}
	if n := len(c.vacant); n > 0 {
		p.number, p.heard = c.vacant[n-1].number, c.vacant[n-1].heard
		c.vacant = c.vacant[:n-1]
	} else if c.numbers < maxPools {
		c.numbers++
		p.number, p.heard = c.numbers, message.Tally{}
	} else {
		return false
	}
	p.name = c.poolName(p.number)
	p.seated, p.said = true, 0
	c.pools = append(c.pools, p)
	return true
}

// busy reports whether p holds or asks for anything, or has said that it stays.
func (p *Pool) busy() bool { return p.held > 0 || p.request != nil || p.trying > 0 || p.stays }

// Pools are those in the session.
func (c *Core) Pools() []*Pool { return c.pools }

// Ask says how many more permits p could use now; it is a level, not an increment. One request is
// under way at a time. Redis grants it as many permits as are free, or queues it for one.
func (c *Core) Ask(now time.Duration, p *Pool, n int) {
	p.want = n
	switch {
	case c.closed && n > 0 && !p.seated:
		c.tell(Event{Kind: Closing, Pool: p}) // it was away when the others were told
	case c.closed:
	case n > 0 && !c.Join(p):
		if p.numberAt == 0 {
			p.numberAt = now + MaxRetryPause
			c.standing = append(c.standing, p)
			c.BeatSoon() // others may be about to leave
		}
	case n > 0 && p.request == nil:
		p.known = true
		permits := make([]*Permit, min(n, maxPoolRequest, max(1, c.roomBelowMax())))
		for i := range permits {
			permits[i] = c.newPermit(p)
		}
		p.request = &Request{Kind: message.Pool, Pool: p, Permits: permits}
		c.Submit(now, p.request)
	case n == 0 && p.request != nil && p.withdrawAt == 0:
		p.withdrawAt = now + withdrawAfter
		c.withdrawing = append(c.withdrawing, p)
	}
}

// poolsDue is when tickPools has to act next, 0 if never. Both lists are in the order of their
// times.
func (c *Core) poolsDue() time.Duration {
	at := time.Duration(0)
	if len(c.standing) > 0 {
		at = c.standing[0].numberAt
	}
	if len(c.withdrawing) > 0 && (at == 0 || c.withdrawing[0].withdrawAt < at) {
		at = c.withdrawing[0].withdrawAt
	}
	return at
}

// tickPools withdraws the requests of pools that want nothing any more, and asks for those that
// found no number.
func (c *Core) tickPools(now time.Duration) {
	for len(c.withdrawing) > 0 && c.withdrawing[0].withdrawAt <= now {
		p := c.withdrawing[0]
		c.withdrawing = remove(c.withdrawing, 1)
		p.withdrawAt = 0
		if p.want == 0 && p.request != nil {
			c.withdraw(now, p.request, ErrCapacity)
		}
	}
	for len(c.standing) > 0 && c.standing[0].numberAt <= now {
		p := c.standing[0]
		c.standing = remove(c.standing, 1)
		p.numberAt = 0
		c.Ask(now, p, p.want)
	}
}

// Stay says whether p stays in its session though it holds and asks for nothing. A pool stays if it
// has connections that live without a permit: it must hear when Redis is back, or the session is
// closed.
func (c *Core) Stay(p *Pool, yes bool) {
	p.stays = yes
	switch {
	case !yes || p.seated:
	case c.closed:
		c.tell(Event{Kind: Closing, Pool: p}) // it was away when the others were told
	default:
		c.Join(p)
	}
}

// Give releases a permit of a pool, held or lost.
func (c *Core) Give(now time.Duration, permit *Permit) {
	if c.left || c.Release(now, permit) == nil {
		return
	}
	if r := permit.Pool.request; r != nil && !r.belowMax {
		c.enqueue(r) // its rank in the queue was that of a larger pool
		c.flush(now)
	}
}

// Offer asks whether anyone in the fleet needs some of n permits that lie idle in p. The answer is
// Told with Offered, or nothing.
func (c *Core) Offer(now time.Duration, p *Pool, n int) {
	for i := range c.offers {
		if c.offers[i].pool == p {
			c.offers[i].n = n
			return
		}
	}
	if !c.closed && p.seated {
		c.offers = append(c.offers, offer{p, n})
		c.flush(now)
	}
}

// Moved tells what it has just cost to move a permit to p: to close a connection until its backend
// has ended, to be granted the permit, and to connect. The fleet paces the moves of permits by that
// cost. The next turn of rotation may wait for the end of this move: the session says that at once.
// It says all else with the next batch or heartbeat.
func (c *Core) Moved(now time.Duration, p *Pool, cost time.Duration) {
	c.moveCost = max(cost, time.Microsecond)
	if p.moving {
		p.moving = false
		c.confirms = true
		c.flush(now)
	}
}

// takeMoveCost takes the cost of a move that was measured since the last call, in microseconds, or
// returns 0.
func (c *Core) takeMoveCost() int64 {
	cost := c.moveCost.Microseconds()
	c.moveCost, c.confirms = 0, false
	return cost
}

// returnMoveCost undoes takeMoveCost, because Redis did not answer: otherwise rotation would wait
// for a move that has ended. The next message or repeat sends the cost again. The session does not
// send it at once, for Redis may be away.
func (c *Core) returnMoveCost(micros int64) {
	if c.moveCost == 0 {
		c.moveCost = time.Duration(micros) * time.Microsecond
	}
}

// Hear takes the tally of an event of kind Told. It returns how many recalls are new; below zero,
// how many were withdrawn. Tallies come by pushes, by the answers to offers and by heartbeats, in
// any order and more than once. A tally of a state that is lost, or not known yet, says nothing.
//
// The shell carries out what Hear returns before it calls Hear again, and before it makes a call of
// the heartbeat. The call reports what was heard together with what the pool owes of it.
func (c *Core) Hear(e Event) int {
	p := e.Pool
	switch {
	case e.Epoch != c.epoch, e.Name != p.name: // it has another number by now
		return 0
	case p.forgets > 0: // a push that overtook the reply in which this state was found
		return 0
	}
	before := p.heard
	p.heard = message.Tally{
		Recalled:  max(before.Recalled, e.Tally.Recalled),
		Withdrawn: max(before.Withdrawn, e.Tally.Withdrawn),
	}
	return int(p.heard.Recalled - before.Recalled - (p.heard.Withdrawn - before.Withdrawn))
}

// HearAnew takes the tally of an event of kind Forget, and reports whether its pool is to forget
// what it owes. Of calls that were on their way together, one says so: Redis may have executed
// another one before, and what was recalled since must not be heard twice.
func (c *Core) HearAnew(e Event) bool {
	e.Pool.forgets--
	if e.Name != e.Pool.name || e.anew != e.Pool.anew {
		return false
	}
	e.Pool.heard = e.Tally
	e.Pool.anew++
	return true
}

// tellTallies passes on what the latest reply of the heartbeat says of recalls.
func (c *Core) tellTallies(k *Call, got message.Renewed, reasserted, lostState bool) {
	for i, tally := range got.Recalls[:min(len(got.Recalls), len(k.pools))] {
		said := k.X.Pools[i].Heard
		e := Event{
			Kind: Told, Pool: k.pools[i], Name: k.X.Pools[i].Name, Epoch: got.Epoch, Tally: tally,
			anew: k.anew[i],
		}
		// When a state is lost, what was owed to it is forgotten. Counts that have shrunk were
		// deleted by hand.
		shrunk := tally.Recalled < said.Recalled || tally.Withdrawn < said.Withdrawn
		if lostState || !reasserted && shrunk {
			e.Kind = Forget
			e.Pool.forgets++
			if lostState {
				e.anew = e.Pool.anew
			}
		} else if tally == e.Pool.heard {
			continue
		}
		c.tell(e)
	}
}

// leaveSeats takes those pools out of the session of which k has said that they hold and ask for
// nothing.
func (c *Core) leaveSeats(k *Call, got message.Renewed) {
	for _, i := range k.ended {
		// It may have asked since, or come back under another number.
		p := k.pools[i]
		if p.name != k.X.Pools[i].Name || p.busy() || p.said >= k.n {
			continue
		}
		// It owes nothing. The next pool with this number must not take the tally of this reply for
		// news.
		if i < len(got.Recalls) && got.Epoch == c.epoch {
			tally, said := got.Recalls[i], k.X.Pools[i].Heard
			// If the tally has shrunk, Redis counts anew.
			if tally.Recalled >= said.Recalled && tally.Withdrawn >= said.Withdrawn {
				tally.Recalled = max(tally.Recalled, p.heard.Recalled)
				tally.Withdrawn = max(tally.Withdrawn, p.heard.Withdrawn)
			}
			p.heard = tally
		}
		c.removePool(p)
	}
}

// removePool takes p out of the session.
func (c *Core) removePool(p *Pool) {
	i := slices.Index(c.pools, p)
	if i < 0 {
		return
	}
	// A new list: others may be reading the old one
	c.pools = slices.Concat(c.pools[:i], c.pools[i+1:])
	c.vacant = append(c.vacant, vacancy{p.number, p.heard})
	c.offers = slices.DeleteFunc(c.offers, func(o offer) bool { return o.pool == p })
	p.seated, p.known, p.name = false, false, ""
}

// PoolRequest is a request of p that does not wait, or nil if there is no number for p. TryEnds
// must be called when it is settled.
func (c *Core) PoolRequest(p *Pool) *Request {
	if !c.Join(p) {
		return nil
	}
	p.known = true
	p.trying++
	return &Request{Kind: message.Try, Permits: []*Permit{c.newPermit(p)}}
}

// TryEnds is the end of a PoolRequest.
func (c *Core) TryEnds(p *Pool) { p.trying-- }

// Full reports whether p waits for a permit, and Redis has answered that none is free.
func (p *Pool) Full() bool { return p.request != nil && p.request.answered && p.request.full }

// ClosePool takes p out of the session, once its last permit is given back.
func (c *Core) ClosePool(now time.Duration, p *Pool) {
	if p.request != nil {
		c.withdraw(now, p.request, ErrCapacity)
	}
	// The next heartbeat that finds nothing held takes it out, here and in Redis. Redis knows
	// nothing of a pool that never asked.
	if !p.known {
		c.removePool(p)
	}
}

func (c *Core) poolNamed(name string) *Pool {
	for _, p := range c.pools {
		if p.name == name {
			return p
		}
	}
	return nil
}
