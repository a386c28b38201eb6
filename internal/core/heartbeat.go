package core

import (
	"maps"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// When calls are sent. The session renews a third of a lease after the last call. Three things make
// the next one earlier:
//
//   - The last call is unanswered. Another one hedges it, over another connection. The first hedge
//     follows after twice the time that replies have been seen to take, the next after four times
//     as long. In the end one follows every fifth of a lease. The calls before it go on: a reply
//     within the trusted time counts, however late.
//   - The trust of a permit ends early, because its grant took long to arrive. It is renewed with
//     45 % of a lease left. Where Redis is slow, two round trips are more than that, and count
//     instead: one of them is for a new connection. A lease that a fast reply renewed has 57 % left
//     when the regular call is due, so this adds no call then.
//   - The last call failed. It is repeated after a twelfth of a lease.

const (
	// minHedge is the shortest wait before a call is hedged: a pause of the garbage collector, or
	// of a busy scheduler, is no reason for a hedge.
	minHedge = 50 * time.Millisecond
	// maxHedge bounds the time between two calls while Redis is silent, however long a lease is.
	maxHedge = 5 * time.Second
	// MaxCalls bounds the calls on their way: a few hedges, then one every fifth of a lease, for
	// two leases.
	MaxCalls = 14
)

// A Call is one round trip of the heartbeat. Several can be on their way, each over a connection of
// its own, so one that hangs does not keep the next from Redis:
//
//	NextCall (number, permits it names) --> on its way --> CallAnswered
//	                                            |
//	                                            +--> CallFailed
//
// Calls have numbers in the order in which they were made. Redis can execute them, and replies can
// arrive, in any other order. In any order, these hold:
//
//   - Trust only grows. A reply proves, from when its call was sent, the leases that the call names
//     and Redis still has. A permit that was released or lost since is not held under that UUID any
//     more.
//   - Only the reply to the latest call counts for the fleet: capacity, epoch, minimum, recalls,
//     waiting requests. The reply to an earlier call adds trust. It loses a permit only if Redis
//     executed it after the latest call.
//   - A permit that a reply misses is lost, unless another reply has confirmed it: one that Redis
//     gave later in the same state, or one of a later state.
//   - A call that found the state lost has re-asserted what it names. A permit that was released
//     since is dropped once more, however late the reply.
//   - A pool leaves the session when a call has said that it holds nothing. That call was made
//     after all calls that said otherwise had ended: one of those would make Redis count the pool's
//     permits again. A call that failed here might do the same, if Redis executes it when it wakes
//     up. So pools stay, and are named, for some time after a failure.
type Call struct {
	X message.Renewal

	n     uint64
	sent  time.Duration
	said  []*Permit // of X.Permits
	pools []*Pool   // of X.Pools
	anew  []int     // of those: see HearAnew
	// ended are the indexes of pools that hold and ask for nothing, while no call on its way says
	// otherwise.
	ended []int
	// X.Report tells these incidents.
	incidents incidents
}

// Number is how calls are told apart: they count from 1.
func (k *Call) Number() uint64 { return k.n }

// heart is the state of the heartbeat.
type heart struct {
	calls    map[uint64]*Call // on their way
	last     uint64           // the number of the last call
	applied  uint64           // of the latest whose reply said what is true of the fleet ...
	at       int64            // ... and when Redis executed that
	answered uint64           // of the latest that was answered, and need not be repeated
	probed   time.Duration    // when that was sent ...
	heard    time.Duration    // ... and answered
	err      error            // of the last that failed
	sent     time.Duration    // when the last call was sent
	jitter   time.Duration    // by which the next one is early, so that sessions spread
	hedges   int              // calls since the last reply, without the first
	silent   time.Duration    // since when nothing was answered, or 0
	failed   time.Duration    // when the last call failed, or 0
	strays   time.Duration    // until when a call that failed here may still be executed
	known    time.Duration    // when the session last had to say at once that it knows a new state
	rtt      time.Duration    // what replies take: the longest, forgotten little by little
	due      time.Duration    // when beatIfDue has to act next, 0 before the session has joined
}

// onTheWay reports whether a call is on its way whose number is one of those, both included.
func (h *heart) onTheWay(first, last uint64) bool {
	for n := range h.calls {
		if first <= n && n <= last {
			return true
		}
	}
	return false
}

// LastCall is the number of the last call.
func (c *Core) LastCall() uint64 { return c.heart.last }

// CallState reports what became of the call with that number. answered: Redis has answered it, or a
// later one. failed: neither it nor a later one is on its way. err is that of the last call that
// failed.
func (c *Core) CallState(n uint64) (answered, failed bool, err error) {
	return c.heart.answered >= n, !c.heart.onTheWay(n, c.heart.last), c.heart.err
}

// Joined starts the heartbeat, now that a first call was answered.
func (c *Core) Joined(now time.Duration) { c.schedule(now) }

// BeatSoon has a call sent now.
func (c *Core) BeatSoon() { c.fx.Heartbeat = true }

// schedule sets when the heartbeat has to act next.
func (c *Core) schedule(now time.Duration) {
	h, ttl := &c.heart, c.cfg.TTL
	at := h.sent + ttl/3 - h.jitter
	switch {
	case h.calls[h.last] != nil:
		at = h.sent + min(c.HedgeAfter()<<(2*min(h.hedges, 10)), ttl/5, maxHedge)
	case h.failed > 0:
		at = h.failed + ttl/12 - h.jitter
	}
	if len(h.calls) >= MaxCalls {
		at = now + ttl/5 // one that ends schedules anew
	}
	least := h.sent + ttl/12 // permits come one by one; this keeps calls from doing so
	if h.failed > 0 {
		least = at
	}
	for _, p := range c.permits {
		if h.calls[p.calls] == nil {
			at = min(at, max(p.trusted-c.allowance(), least))
		}
	}
	if h.silent > 0 && c.down == nil {
		at = min(at, h.silent+c.Silence())
	}
	h.due = max(at, 1)
}

// beatIfDue sends a call, or notes that Redis is silent.
func (c *Core) beatIfDue(now time.Duration) {
	c.schedule(now)
	h := &c.heart
	if now < h.due {
		return
	}
	if h.silent > 0 && c.down == nil && now >= h.silent+c.Silence() {
		c.warn("heartbeat: no answer", "for", c.Silence())
		c.setDown(now, errSilent)
		c.failBlocked(now, errSilent)
		c.schedule(now)
		if now < h.due {
			return
		}
	}
	c.fx.Heartbeat = true
	h.due = now + c.cfg.TTL/12 // in case that no call is made: there are too many
}

// HedgeAfter is how long the first of a series of calls may take before another one is sent.
func (c *Core) HedgeAfter() time.Duration {
	if c.heart.rtt == 0 {
		return c.cfg.TTL / 5
	}
	return min(max(2*c.heart.rtt, minHedge), c.cfg.TTL/5, maxHedge)
}

// allowance is the least trust that a permit has left when it is renewed.
func (c *Core) allowance() time.Duration {
	return max(c.cfg.TTL*45/100, min(2*c.heart.rtt, c.cfg.TTL))
}

// Silence is how long Redis may be silent before it counts as away. A Redis that is slow, but
// renews leases in time, replies sooner than that.
func (c *Core) Silence() time.Duration {
	return max(c.cfg.TTL/2, min(c.heart.rtt*5/2, c.cfg.TTL-c.cfg.Margin))
}

// NextCall makes the next call, of what is held now. owed is how many permits each pool still has
// to give back, of those that it was told of. It returns nil if the session has left, or if so many
// calls are on their way that another one would not help.
func (c *Core) NextCall(now time.Duration, owed map[*Pool]int) *Call {
	h := &c.heart
	if c.left || len(h.calls) >= MaxCalls {
		return nil
	}
	k := &Call{n: h.last + 1, sent: now, X: message.Renewal{
		Session: c.cfg.Session, TTLMillis: c.ttlMillis(), Info: c.info,
		Capacity: c.cfg.Capacity, Min: c.cfg.Min, Limit: c.limit, Sessions: c.sessions,
		Epoch: c.epoch, NewEpoch: c.cfg.NewEpoch(), Load: c.epoch == "",
		Expected: c.Expected(now), MoveMicros: c.takeMoveCost(),
		Pause: c.pause, Report: c.incidents.String(),
	}, incidents: c.incidents}
	c.incidents = incidents{}
	k.said = make([]*Permit, 0, len(c.permits))
	for id, p := range c.permits {
		k.X.Permits = append(k.X.Permits, id)
		k.said = append(k.said, p)
		p.calls = k.n
		if p.records > 0 && k.X.Backends == nil {
			k.X.Backends = make([]string, len(k.said)-1, len(c.permits))
		}
		if k.X.Backends != nil {
			k.X.Backends = append(k.X.Backends, p.record())
		}
	}
	for i, pool := range c.pools {
		k.pools = append(k.pools, pool)
		k.anew = append(k.anew, pool.anew)
		k.X.Pools = append(k.X.Pools, message.PoolReport{
			Name: pool.name, Held: pool.held, Heard: pool.heard, Owed: min(owed[pool], pool.held),
		})
		if pool.busy() {
			pool.said = k.n
		} else if !h.onTheWay(1, pool.said) && now >= h.strays {
			k.ended = append(k.ended, i)
		}
	}
	if len(h.calls) == 0 {
		h.hedges = 0
	} else {
		h.hedges++
	}
	h.last, h.sent, h.failed = k.n, now, 0
	h.jitter = c.cfg.Random(c.cfg.TTL / 24)
	if h.silent == 0 {
		h.silent = now
	}
	h.calls[k.n] = k
	if h.due > 0 {
		c.schedule(now) // to be hedged in time
	}
	return k
}

// ends takes k out of the calls that are on their way.
func (c *Core) ends(now time.Duration, k *Call) {
	delete(c.heart.calls, k.n)
	if c.heart.due > 0 {
		c.schedule(now)
	}
}

// CallBroke notes that the connection of a call broke, and that the shell sends the call again.
// Redis may execute both, the first one late: see Call.
func (c *Core) CallBroke(now time.Duration) { c.heart.strays = now + 2*c.cfg.TTL }

// CallFailed takes the end of a call that brought no reply, or an error. It counts against Redis
// only if no later call says more.
func (c *Core) CallFailed(now time.Duration, k *Call, err error) {
	h := &c.heart
	c.returnMoveCost(k.X.MoveMicros)
	c.incidents.add(k.incidents)
	h.err = err
	c.CallBroke(now)
	if k.n == h.last && h.answered < k.n {
		h.failed = now
		// Otherwise Redis may still answer the call that this one hedges: see beatIfDue.
		if len(h.calls) == 1 {
			c.setDown(now, err)
		}
		if c.epoch != "" && !c.left {
			c.warn("heartbeat failed", "error", err)
		}
	}
	c.ends(now, k)
	if !h.onTheWay(c.needsCall, h.last) {
		c.failBlocked(now, err)
	}
}

// CallAnswered applies a reply.
func (c *Core) CallAnswered(now time.Duration, k *Call, got message.Renewed) {
	h := &c.heart
	changed := c.setDown(now, nil)
	h.rtt = max(now-k.sent, h.rtt-h.rtt/16)
	c.renewed = max(c.renewed, k.sent)
	h.silent, h.hedges = 0, 0
	for _, other := range h.calls {
		if other.n > k.n && (h.silent == 0 || other.sent < h.silent) {
			h.silent = other.sent
		}
	}
	reasserted := k.X.Epoch != "" && k.X.Epoch != got.Epoch
	// Another call has found a new state meanwhile, and this one neither knew that state nor met
	// it. Only a further call can tell which of the two states is there now.
	again := k.n > h.applied && k.X.Epoch != c.epoch && got.Epoch != c.epoch
	latest := k.n > h.applied && !again
	lostState := latest && reasserted && got.Epoch != c.epoch

	c.confirm(now, k, got, reasserted, latest, again)
	if latest {
		changed = c.setNoMemory(got.Full, got.Now) || changed
		again = lostState && c.changedSince(k)
		c.applyFleet(now, k, got, again, changed)
	}
	switch {
	case c.left:
	case again: // a call with the old epoch re-asserts the rest
		c.fx.Heartbeat = true
	case lostState && (h.known == 0 || now-h.known >= c.cfg.TTL/12):
		// A call with the new epoch brings the session back: Redis cannot know from k alone that k
		// named all that the session trusts. After another loss so soon the regular call does.
		// Otherwise two servers that answer in turn would be asked as fast as they answer.
		h.known = now
		c.fx.Heartbeat = true
	}
	if !again || c.left {
		if k.n > h.answered {
			h.answered, h.probed, h.heard = k.n, k.sent, now
		}
		switch {
		case lostState:
			c.warn("Redis lost its state: permits re-asserted", "held", len(k.said))
			c.repeat(now)
		case latest && got.PausedUntil > got.Now:
			c.retryIn(now, Until(got.PausedUntil+1, got.Now))
		}
	}
	if latest {
		c.tellWaiting(got.Waiting > 0, k.sent)
		c.quarantined(now, got.Quarantine)
	}
	if latest && !again { // else the next call tells, by which the new state is taken
		c.tellTallies(k, got, reasserted, lostState)
	}
	maps.DeleteFunc(c.lost, func(_ string, until time.Duration) bool { return until <= now })
	c.ends(now, k)
	c.flush(now)
}

// confirm extends the trust of the permits that k names and Redis still has, and loses the others.
func (c *Core) confirm(
	now time.Duration, k *Call, got message.Renewed, reasserted, latest, again bool,
) {
	missing := make(map[string]bool, len(got.Missing))
	for _, id := range got.Missing {
		missing[id] = true
	}
	trusted := k.sent + c.cfg.TTL - c.cfg.Margin
	var over []*Permit
	for i, p := range k.said {
		id := k.X.Permits[i]
		switch {
		case c.permits[id] != p:
			// The permit was released or lost while the call was on its way: if Redis misses it,
			// that is no loss. But if the state was lost, the call may have put the permit back
			// after its release: release it once more.
			if reasserted && p.state == Released {
				c.drop(now, id)
			}
		case again, !latest && got.Epoch != c.epoch: // it speaks of a state that is gone
		case missing[id] && (latest || got.Now >= c.heart.at):
			over = append(over, p)
		case missing[id]:
		default:
			c.trust(p, trusted)
		}
	}
	c.loseAll(now, over)
}

// changedSince reports whether a permit is held that k did not name, or one that k named has
// another record by now. If the state was lost, k has put its own, older record back.
func (c *Core) changedSince(k *Call) bool {
	still := 0
	for i, p := range k.said {
		if c.permits[p.ID] != p {
			continue
		}
		if k.X.Backends != nil && p.record() != k.X.Backends[i] {
			return true
		}
		still++
	}
	return len(c.permits) > still
}

// countSessions keeps the most sessions that a reply of the last lease told of. After a loss of
// state grants go on once as many are back as any of them knew. The first replies of the new state
// count those that are back already. If it is lost, too, before the others were told, one that is
// frozen meanwhile would be forgotten, and its permits granted while it trusts them. After a lease
// it does not trust them any more.
func (c *Core) countSessions(now time.Duration, n int64) {
	if n >= c.sessions || now-c.sessionsAt >= c.cfg.TTL {
		c.sessions, c.sessionsAt = n, now
	}
}

// applyFleet takes what the latest reply says of the fleet. With again, the state was lost, and the
// session takes the new epoch only once it has re-asserted all that it holds. With changed, the
// pools are being told that Redis is back. A pool that lives without permits may then ask for some,
// so no pool leaves now.
func (c *Core) applyFleet(now time.Duration, k *Call, got message.Renewed, again, changed bool) {
	h := &c.heart
	h.applied, h.at = k.n, got.Now
	if k.sent >= c.anchor.local {
		c.anchor = anchor{local: k.sent, redis: got.Now}
	}
	c.sharded = got.Sharded
	c.subscribers(now, got.Subscribers, k.sent)
	c.limit = got.Limit
	c.countSessions(now, got.Sessions)
	c.setPause(now, got)
	if !again {
		if c.epoch != got.Epoch { // Redis counts anew
			for i := range c.vacant {
				c.vacant[i].heard = message.Tally{}
			}
		}
		c.epoch = got.Epoch
	}
	if !changed {
		c.leaveSeats(k, got)
	}
	if c.capacity != got.Capacity {
		if got.Capacity != int64(c.cfg.Capacity) {
			c.warn("the fleet's capacity is not what this session declares",
				"declared", c.cfg.Capacity, "in force", got.Capacity)
		}
		c.capacity = got.Capacity
	}
	if got.Min < c.min {
		c.warn("the fleet's minima exceed its capacity", "declared", c.cfg.Min, "kept", got.Min)
	}
	c.min = got.Min
}

// quarantined takes the backends in quarantine that Redis asks this session to end.
func (c *Core) quarantined(now time.Duration, quarantine []string) {
	still := make(map[string]bool, len(quarantine)/2)
	var list []Record
	for i := 0; i+1 < len(quarantine); i += 2 {
		still[quarantine[i]] = true
		list = append(list, newRecord(quarantine[i], quarantine[i+1], 2))
	}
	maps.DeleteFunc(c.ending, func(id string, e *ending) bool { return !e.underWay && !still[id] })
	c.end(now, list)
}
