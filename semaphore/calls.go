package semaphore

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// A call is one round trip of the heartbeat. Several can be on their way, each over a connection of its
// own, so one that hangs does not keep the next from Redis:
//
//	gathered (number, permits it names) --> on its way --> answered --> applied
//	                                            |
//	                                            +--> failed
//
// Calls have numbers in the order in which they were gathered. Redis can execute them, and replies can
// arrive, in any other order. What holds whatever the order:
//
//   - Trust only grows. A reply proves the leases that it names and does not miss, from when its call was
//     sent; a permit that was released since, or lost, is not held under that UUID any more.
//   - What a reply says of the fleet (capacity, epoch, minimum, recalls, who waits) is taken from the
//     latest call only. An earlier one adds trust, and loses what Redis executed later than that.
//   - A permit that a reply misses is lost, unless a reply that Redis gave later in the same state, or a
//     reply of a later state, has confirmed it.
//   - A reply that found the state lost re-asserted what its call names. What was released since is
//     dropped once more, however late that reply.
//   - A pool leaves the session when a call has said that it holds nothing that was gathered after all
//     had ended that said otherwise: one of those would have Redis count its permits again. So might one
//     that failed here, and is executed when Redis wakes up; pools stay, and are named, for some time then.
type call struct {
	n      uint64
	sent   time.Duration
	renew  redisscript.Renew
	said   []*Permit // of renew.Permits
	shares []*Share  // of renew.Sharers
	ended  []int     // of those: they hold and ask for nothing, and no call on its way says otherwise
}

// callsMost bounds the calls on their way: a few hedges, then one every fifth of a lease, for two leases.
const callsMost = 14

// heart is the state of a session's heartbeat. Semaphore.mu guards it.
type heart struct {
	calls    map[uint64]*call // on their way
	last     uint64           // the number of the last call
	applied  uint64           // of the latest whose reply said what is true of the fleet ...
	at       int64            // ... and when Redis executed that
	answered uint64           // of the latest that was answered, and need not be repeated
	probed   time.Duration    // when that was sent ...
	heard    time.Duration    // ... and answered
	err      error            // of the last that failed
	sent     time.Duration    // when the last call was sent
	jitter   time.Duration    // by which the next one is early, so that sessions spread
	hedges   int              // calls since the last reply, but the first
	silent   time.Duration    // since when nothing was answered, or 0
	failed   time.Duration    // when the last call failed, or 0
	strays   time.Duration    // until when a call that failed here may still be executed
	rtt      time.Duration    // what replies take: the longest, forgotten little by little
	due      time.Duration    // what nextCall said
	ended    chan struct{}    // closed when a call ends, and replaced
	poke     chan struct{}    // nextCall has another answer now
}

func newHeart() heart {
	return heart{calls: make(map[uint64]*call), ended: make(chan struct{}), poke: make(chan struct{}, 1)}
}

// onTheWay reports whether a call with that number, or a later one, is on its way.
func (h *heart) onTheWay(from uint64) bool {
	for n := range h.calls {
		if n >= from {
			return true
		}
	}
	return false
}

// anyUpTo reports whether a call with that number, or an earlier one, is on its way.
func (h *heart) anyUpTo(last uint64) bool {
	for n := range h.calls {
		if n <= last {
			return true
		}
	}
	return false
}

// measured notes what a round trip took.
func (h *heart) measured(took time.Duration) { h.rtt = max(took, h.rtt-h.rtt/16) }

// errManyCalls is returned by call if so many are on their way that another one would not help.
var errManyCalls = errors.New("too many heartbeats are on their way")

// call sends a call that may take as long as limit, and returns its number, or that of the last if it
// sends none.
func (s *Semaphore) call(limit time.Duration) (uint64, error) {
	s.mu.Lock()
	h := &s.heart
	if s.left {
		s.mu.Unlock()
		return 0, ErrClosed
	}
	if len(h.calls) >= callsMost {
		defer s.mu.Unlock()
		return h.last, errManyCalls
	}
	c := s.gather()
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		s.carryCall(c, limit)
	}()
	return c.n, nil
}

// gather makes the next call, of what is held now. s.mu is held.
func (s *Semaphore) gather() *call {
	h := &s.heart
	c := &call{n: h.last + 1, renew: redisscript.Renew{
		Session: s.identity.session, TTLMillis: s.ttlMillis(), Capacity: s.cfg.Capacity,
		Info: s.info, NewEpoch: uuid.NewString(), Min: s.cfg.Min, Load: s.epoch == "",
	}}
	n := &c.renew
	n.Epoch, n.Limit, n.Roster = s.epoch, s.limit, s.roster
	c.said = make([]*Permit, 0, len(s.permits))
	for id, p := range s.permits {
		n.Permits = append(n.Permits, id)
		c.said = append(c.said, p)
		p.named = c.n
		if p.marks > 0 && n.Backends == nil {
			n.Backends = make([]string, len(c.said)-1, len(s.permits))
		}
		if n.Backends != nil {
			n.Backends = append(n.Backends, p.covered())
		}
	}
	c.shares = append(c.shares, s.shares...)
	for i, sh := range c.shares {
		n.Sharers = append(n.Sharers, redisscript.Sharer{Name: sh.name, Held: sh.held})
		if sh.busy() {
			sh.said = c.n
		} else if !h.anyUpTo(sh.said) && s.sinceStart() >= h.strays {
			c.ended = append(c.ended, i)
		}
	}
	n.MoveMicros = s.takeMoveCost()

	if len(h.calls) == 0 {
		h.hedges = 0
	} else {
		h.hedges++
	}
	c.sent = s.sinceStart()
	n.Expected = s.anchor.expected(c.sent)
	h.last, h.sent, h.failed = c.n, c.sent, 0
	h.jitter = rand.N(s.cfg.TTL/24 + 1)
	if h.silent == 0 {
		h.silent = c.sent
	}
	h.calls[c.n] = c
	s.pokeHeart() // to be hedged in time
	return c
}

// carryCall sends c, waits for its reply, and applies that.
func (s *Semaphore) carryCall(c *call, limit time.Duration) {
	for i, sh := range c.shares {
		heard, owed := sh.owes()
		c.renew.Sharers[i].Heard, c.renew.Sharers[i].Owed = heard, min(owed, c.renew.Sharers[i].Held)
	}
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	var got redisscript.Renewed
	var err error
	for range 3 { // a connection that broke while it lay idle says nothing of the next
		if got, err = c.renew.Run(ctx, s.scripter(s.own), s.keys); !isBroken(err) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		s.callFailed(c, err)
		return
	}
	s.callAnswered(c, got)
}

// callEnds takes c out of those that are on their way. s.mu is held.
func (s *Semaphore) callEnds(c *call) {
	h := &s.heart
	delete(h.calls, c.n)
	close(h.ended)
	h.ended = make(chan struct{})
	s.pokeHeart()
}

// callFailed handles a call that brought no reply, or an error. It says something of Redis if no later
// call says more.
func (s *Semaphore) callFailed(c *call, err error) {
	s.mu.Lock()
	h := &s.heart
	s.returnMoveCost(c.renew.MoveMicros)
	h.err = err
	h.strays = s.sinceStart() + 2*s.cfg.TTL
	latest := c.n == h.last && h.answered < c.n
	changed := false
	if latest {
		h.failed = s.sinceStart()
		if len(h.calls) == 1 { // else the call that this one hedges may be answered yet: see noteSilence
			changed = s.setDown(err)
		}
	}
	log := latest && s.epoch != "" && !s.left
	s.callEnds(c)
	s.mu.Unlock()
	if log {
		s.log.Warn("heartbeat failed", "semaphore", s.base, "error", err)
	}
	lookAround(s.ctx, s.own)
	if changed {
		s.tellShares(func(sh Sharer) { sh.Changed() })
	}
}

// callAnswered applies a reply.
func (s *Semaphore) callAnswered(c *call, got redisscript.Renewed) {
	s.mu.Lock()
	h, n := &s.heart, &c.renew
	changed := s.setDown(nil)
	h.measured(s.sinceStart() - c.sent)
	s.renewed = max(s.renewed, c.sent)
	h.silent, h.hedges = 0, 0
	for _, other := range h.calls {
		if other.n > c.n && (h.silent == 0 || other.sent < h.silent) {
			h.silent = other.sent
		}
	}
	reasserted := n.Epoch != "" && n.Epoch != got.Epoch
	// Another call has found a new state meanwhile, and this one neither knew it nor met it: which of the
	// two states is there now, only another call can tell.
	again := c.n > h.applied && n.Epoch != s.epoch && got.Epoch != s.epoch
	latest := c.n > h.applied && !again
	lostState := latest && reasserted && got.Epoch != s.epoch

	missing := make(map[string]bool, len(got.Missing))
	for _, id := range got.Missing {
		missing[id] = true
	}
	trusted := c.sent + s.cfg.TTL - s.margin
	for i, p := range c.said {
		id := n.Permits[i]
		switch {
		case s.permits[id] != p:
			// Released, or lost, while the call was on its way. That it is missing is no loss. But if state
			// was lost, the call may have put it back after its release: release it once more.
			if reasserted && p.id != id {
				s.drop(id)
				s.fly()
			}
		case again, !latest && got.Epoch != s.epoch: // it speaks of a state that is gone
		case missing[id] && (latest || got.Now >= h.at):
			s.lose(p)
		case missing[id]:
		default:
			p.trusted.Store(max(p.trusted.Load(), int64(trusted)))
		}
	}
	if latest {
		changed = s.setNoMemory(got.Full, got.Now) || changed
		again = lostState && (s.holdsOtherThan(n.Permits) || s.coversOtherThan(c))
		s.applyFleet(c, got, again, changed)
	}
	if again && !s.left {
		next := s.gather()
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			s.carryCall(next, 2*s.cfg.TTL)
		}()
	} else {
		if c.n > h.answered {
			h.answered, h.probed, h.heard = c.n, c.sent, s.sinceStart()
		}
		switch {
		case lostState:
			s.log.Warn("Redis lost its state: permits re-asserted", "semaphore", s.base, "held", len(c.said))
			s.repeat()
		case latest && got.Gate > got.Now:
			s.lookAgain(until(got.Gate+1, got.Now))
		}
	}
	s.mu.Unlock()

	s.tellShares(func(sh Sharer) {
		if changed {
			sh.Changed()
		}
		if latest {
			s.tellWanted(sh, got.Waiting > 0, c.sent)
		}
	})
	if latest {
		s.forgetEnded(got.Quarantine)
		s.endBackends(got.Quarantine)
		for i, tally := range got.Recalls[:min(len(got.Recalls), len(c.shares))] {
			said := n.Sharers[i].Heard
			// With a state that is lost, what was owed to it is forgotten. Counts that have become less were
			// deleted by somebody's hand.
			if lostState || !reasserted && (tally.Recalled < said.Recalled || tally.Withdrawn < said.Withdrawn) {
				c.shares[i].forgetOwed(n.Sharers[i].Name, tally)
			} else {
				c.shares[i].told(n.Sharers[i].Name, got.Epoch, tally, 0, false)
			}
		}
	}
	s.mu.Lock()
	s.callEnds(c) // only now: who waits for it finds done what it asks for
	s.mu.Unlock()
}

// coversOtherThan reports whether a permit that c named has another record by now: in a state that was
// lost, c has put its own back. s.mu is held.
func (s *Semaphore) coversOtherThan(c *call) bool {
	for i, backend := range c.renew.Backends {
		if p := c.said[i]; s.permits[c.renew.Permits[i]] == p && p.covered() != backend {
			return true
		}
	}
	return false
}

// applyFleet takes what the latest reply says of the fleet. again: the state was lost, and is not known
// here before all that is held has been re-asserted. changed: pools are about to be told so, and some may
// live without permits, and ask for them then. s.mu is held.
func (s *Semaphore) applyFleet(c *call, got redisscript.Renewed, again, changed bool) {
	h := &s.heart
	h.applied, h.at = c.n, got.Now
	if c.sent >= s.anchor.local {
		s.anchor = anchor{local: c.sent, redis: got.Now}
	}
	s.sharded = got.Sharded
	s.heard(got.Listeners, c.sent)
	s.limit, s.roster = got.Limit, got.Roster
	if !again {
		if s.epoch != got.Epoch { // Redis counts anew
			for i := range s.vacant {
				s.vacant[i].heard = redisscript.Tally{}
			}
		}
		s.epoch = got.Epoch
	}
	for _, i := range c.ended {
		// It may have asked since, or come back under another number.
		sh := c.shares[i]
		if changed || sh.name != c.renew.Sharers[i].Name || sh.busy() || sh.said >= c.n {
			continue
		}
		// It owes nothing. Who has the number next must not take what this reply tells for news.
		if i < len(got.Recalls) && got.Epoch == s.epoch {
			tally, said := got.Recalls[i], c.renew.Sharers[i].Heard
			if tally.Recalled >= said.Recalled && tally.Withdrawn >= said.Withdrawn { // else Redis counts anew
				tally.Recalled = max(tally.Recalled, sh.heard.Recalled)
				tally.Withdrawn = max(tally.Withdrawn, sh.heard.Withdrawn)
			}
			sh.heard = tally
		}
		s.removeShare(sh)
	}
	if s.capacity != got.Capacity {
		if got.Capacity != int64(s.cfg.Capacity) {
			s.log.Warn("the fleet's capacity is not what this session declares", "semaphore", s.base, "declared", s.cfg.Capacity, "in force", got.Capacity)
		}
		s.capacity = got.Capacity
	}
	if got.Min < s.min {
		s.log.Warn("the fleet's minima exceed its capacity", "semaphore", s.base, "declared", s.cfg.Min, "kept", got.Min)
	}
	s.min = got.Min
}
