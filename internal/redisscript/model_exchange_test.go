package redisscript

import (
	"slices"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the oracle for plain.lua and exchange.lua: what a batch is answered.

// plainExchange is the fast path for plain permits that nobody waits for, where nothing is out of
// the ordinary. ok is false if the batch cannot take it.
func plainExchange(before *state, time int64, x message.Exchange) (
	s *state, answer message.Exchanged, ok bool,
) {
	wanted := append(slices.Clone(x.Waits), x.Tries...)
	if len(x.Drop)+len(x.Requests)+x.Offered > 0 || x.MoveMicros > 0 || len(before.Queue) > 0 ||
		len(x.Release)+len(wanted) == 0 {
		return nil, message.Exchanged{}, false
	}
	s = before.clone()
	now, count := time-s.num("skew"), int64(0)
	if len(wanted) > 0 {
		_, fence := s.Meta["fence"]
		room, ok := usualRoom(s, now, x)
		if !ok || int64(len(wanted)) > room || fence && len(s.Quarantine) > 0 {
			return nil, message.Exchanged{}, false
		}
	} else {
		now = 0 // the script does not look
	}
	for _, id := range x.Release {
		if _, ok := s.Permits[id]; ok {
			delete(s.Permits, id)
			count--
		}
	}
	for _, id := range wanted {
		if _, ok := s.Permits[id]; !ok {
			count++
		}
		s.Permits[id] = now + x.TTLMillis
	}
	if count != 0 {
		s.setNum("count", s.num("count")+count)
	}
	return s, message.Exchanged{All: true, Now: now}, true
}

// usualRoom is how many permits are free. ok is false if anything is out of the ordinary.
func usualRoom(s *state, now int64, x message.Exchange) (room int64, ok bool) {
	off := max(now-x.Expected, x.Expected-now)
	held := int64(len(s.Permits))
	_, paused := s.Meta["pause"]
	ok = !paused && x.Epoch == s.Meta["epoch"] && held >= s.num("count") && s.num("gate") <= now &&
		float64(off) <= 0.08*float64(min(s.num("lease"), x.TTLMillis))
	return s.num("cap") - max(0, s.num("reserve")) - held, ok
}

// handsOver reports whether plain permits are released while some are held, and only plain requests
// wait. Then the answer says no more than what it did.
func handsOver(s *state, time int64, x message.Exchange) bool {
	now := time - s.num("skew")
	if len(x.Drop)+len(x.Requests)+x.Offered+len(x.Waits)+len(x.Tries) > 0 || x.MoveMicros > 0 ||
		len(s.Queue) == 0 || len(s.Permits) == 0 || len(s.Levels)+len(s.Promises) > 0 {
		return false
	}
	for _, at := range s.Permits {
		if at <= now {
			return false
		}
	}
	_, reserves := s.Meta["reserve"]
	_, fence := s.Meta["fence"]
	room, ok := usualRoom(s, now, x)
	if !ok || room < 0 || reserves || fence {
		return false
	}
	for i, request := range s.queued() {
		_, ids := parsed(request)
		if int64(i) < room+int64(len(x.Release)) &&
			(len(ids) != 1 || isPooled(ids[0]) || !s.isLive(sessionOf(ids[0]), now)) {
			return false
		}
	}
	return true
}

// An exchange is one run of the script exchange on its other path.
type exchange struct {
	*oracle
	x       message.Exchange
	own     string
	out     message.Exchanged
	paused  bool
	expired bool // leases were ended, as far as they have expired
	changed bool // the queue is another one than before
}

// exchange returns ErrGone where the session has to renew first.
func (o *oracle) exchange(x message.Exchange) (message.Exchanged, error) {
	wanted := len(x.Waits) + len(x.Tries) + len(x.Requests)
	if o.epoch != x.Epoch || wanted > 0 && !o.isLive(x.Session, o.now) {
		return message.Exchanged{}, message.ErrGone
	}
	e := &exchange{oracle: o, x: x, own: x.Session, paused: !o.mayGrant(), out: message.Exchanged{
		Now: o.now, Granted: []string{}, Refused: []string{}, Crowded: []string{},
		NoMemory: []string{},
	}}
	o.learnMove(e.own, x.MoveMicros)
	e.releaseAll()
	if len(o.Queue) > 0 && !e.paused {
		e.expired = true
		o.expireLeases(e.own)
		e.grantHead()
	}
	before := len(o.Queue)
	e.askAll()
	if e.changed && !e.paused {
		e.grantHead()
	}
	look, fresh := int64(0), false
	if len(o.Queue) > 0 && !e.paused {
		look, fresh = o.askLook(e.own)
	}
	movesOn := !e.paused && !o.awaitsLook()
	if movesOn && len(o.Queue) > 0 && (e.changed && before == 0 || fresh) {
		for i, pool := range o.givers() {
			if int64(i) < oracleTold {
				o.push(sessionOf(pool), "w "+pool)
			}
		}
	}
	e.out.Waiting = int64(len(o.Queue))
	needed := x.Offered > 0 && e.out.Waiting > 0 && movesOn && e.answerOffer()
	if len(o.Queue)+len(o.Promises) > 0 && movesOn {
		o.balance(o.capacity)
	}
	if needed {
		e.out.Promised = o.tally(x.Offerer)
	}
	if e.out.Waiting > 0 {
		e.out.Wake = e.wakeAt(look)
	}
	e.out.Free = max(0, o.free(o.capacity))
	o.end()
	return e.out, nil
}

func (e *exchange) grantHead() {
	e.out.Granted = append(e.out.Granted, e.grantQueue(e.capacity, e.own)...)
}

// releaseAll releases permits, and takes withdrawn requests out of the queue.
func (e *exchange) releaseAll() {
	for _, id := range e.x.Release {
		e.release(id)
	}
	for _, request := range e.x.Drop {
		_, ids := parsed(request)
		held := false
		for _, id := range ids {
			held = e.release(id) || held
		}
		if !held {
			delete(e.Queue, request)
		}
	}
}

// room returns how many of n permits are free for the session. If too few are, it looks for leases
// that have expired.
func (e *exchange) room(n int64) int64 {
	if !e.expired && e.grantable(n, e.free(e.capacity), e.own) < n {
		e.expired = true
		e.expireLeases(e.own)
	}
	return e.grantable(n, e.free(e.capacity), e.own)
}

func (e *exchange) askAll() {
	for _, id := range e.x.Waits {
		e.grantOrQueue(message.Wait, message.Permits(e.x.TTLMillis, id))
	}
	for _, id := range e.x.Tries {
		e.grantOrQueue(message.Try, message.Permits(e.x.TTLMillis, id))
	}
	for _, r := range e.x.Requests {
		e.grantOrQueue(r.Kind, r.Permits)
	}
}

// grantOrQueue grants a request, queues it or refuses it.
func (e *exchange) grantOrQueue(kind message.Kind, request string) {
	joins := kind == message.Join
	if joins {
		kind = message.Pool
	}
	ttl, ids := parsed(request)
	n := int64(len(ids))
	var held []string
	for _, id := range ids {
		if e.isQuarantined(id) {
			e.out.Refused = append(e.out.Refused, ids[0])
			return
		}
		if _, ok := e.Permits[id]; ok {
			held = append(held, id)
		}
	}
	if len(held) == len(ids) || len(held) > 0 && kind == message.Pool { // it is repeated
		for _, id := range held {
			e.Permits[id] = e.now + ttl
		}
		e.out.Granted = append(e.out.Granted, held...)
		return
	}
	if len(held) > 0 { // an operator has removed the others
		e.out.Refused = append(e.out.Refused, ids[0])
		return
	}
	lacks, _ := e.minLacks(e.own)
	some := int64(0)
	if (len(e.Queue) == 0 || lacks >= n) && !e.paused && kind != message.Hold {
		some = e.room(n)
		if kind == message.Pool && some > 0 {
			some = e.atOnce(poolOf(ids[0]), some, e.capacity, joins)
		}
	}
	switch {
	case some == n || kind == message.Pool && some > 0:
		for _, id := range ids[:some] {
			e.grant(id, ttl)
		}
		if kind == message.Pool {
			request = message.Permits(ttl, ids[0])
		}
		delete(e.Queue, request) // a minimum is served out of turn
		e.out.Granted = append(e.out.Granted, ids[:some]...)
	case kind == message.Pool:
		e.enqueue(message.Permits(ttl, ids[0]), ids[0], n)
	case kind == message.Wait && n <= e.capacity:
		e.enqueue(request, ids[0], n)
	default:
		if kind == message.Wait { // it may have waited while the capacity was larger
			delete(e.Queue, request)
		}
		e.out.Refused = append(e.out.Refused, ids[0])
	}
}

// enqueue puts a request behind all others of its rank. A request that waits already keeps its
// turn.
func (e *exchange) enqueue(request, id string, n int64) {
	old, waits := e.Queue[request]
	most := e.x.MaxWaiting
	if !waits && most > 0 && len(e.Queue) >= most && !isPooled(id) {
		e.out.Crowded = append(e.out.Crowded, id)
		return
	}
	turn, rank := old%oracleRank/oracleWants, e.rank(id)
	if !waits || rank == oracleLevels && old/oracleRank > oracleLevels {
		turn = e.seq()
	}
	e.Queue[request] = rank*oracleRank + turn*oracleWants + min(n, oracleWants) - 1
	e.changed = e.changed || e.Queue[request] != old
}

// rank puts first what a minimum lacks, then pools that hold nothing, then those that hold least
// for their weight.
func (o *oracle) rank(id string) int64 {
	if lacks, _ := o.minLacks(sessionOf(id)); lacks > 0 {
		return 0
	}
	if held := o.Held[poolOf(id)]; isPooled(id) && held > 0 {
		return min(8191, oracleLevels+max(1, oracleLevels*held/weightOf(id)))
	}
	return oracleLevels
}

// answerOffer promises what a pool offers, and reports whether anyone needs some of it.
func (e *exchange) answerOffer() bool {
	e.forgetPromises()
	unpromised := -int64(len(e.Promises))
	for _, w := range e.waitersInNeed() {
		if w.pool != e.x.Offerer {
			unpromised += w.wants
		}
	}
	n := min(int64(e.x.Offered), max(0, unpromised), e.keptBy(e.x.Offerer))
	if lacks, ok := e.minLacks(e.own); ok {
		n = min(n, max(0, -lacks))
	}
	for range n {
		e.promise(e.x.Offerer, e.now, " o")
	}
	return n > 0
}

// wakeAt returns when the session has to ask again, as long as requests wait.
func (e *exchange) wakeAt(look int64) (at int64) {
	if p, inForce := e.operatorPause(e.now); inForce {
		return p.Until
	}
	switch first := byScore(e.Permits); {
	case e.paused && e.num("early") > e.now:
		at = e.num("early")
	case e.paused:
		at = e.pausedUntil
	case len(first) > 0:
		at = e.Permits[first[0]]
	}
	if !e.paused && e.free(e.capacity) > 0 && e.calmUntil() > e.now {
		at = e.calmUntil()
	}
	if look > 0 && (at == 0 || look < at) {
		at = look
	}
	return at
}
