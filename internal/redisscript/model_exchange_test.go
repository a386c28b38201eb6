package redisscript

import (
	"slices"

	"github.com/passbuddy/passbuddy/internal/message"
)

// lane is what an exchange of plain permits alone answers while nobody waits and nothing is out of the ordinary.
func lane(before *state, time int64, x message.Exchange) (*state, message.Exchanged, bool) {
	wanted := append(slices.Clone(x.Waits), x.Tries...)
	if len(x.Drop)+len(x.Ask)+x.Offered > 0 || x.MoveMicros > 0 || len(before.Queue) > 0 || len(x.Release)+len(wanted) == 0 {
		return nil, message.Exchanged{}, false
	}
	s := before.clone()
	now, count := time-s.num("skew"), int64(0)
	if len(wanted) > 0 {
		off := max(now-x.Expected, x.Expected-now)
		held := int64(len(s.Permits))
		if x.Epoch != s.Meta["epoch"] || held < s.num("count") || held+int64(len(wanted)) > s.num("cap")-max(0, s.num("reserve")) ||
			s.num("gate") > now || float64(off) > 0.08*float64(min(s.num("lease"), x.TTLMillis)) {
			return nil, message.Exchanged{}, false
		}
	} else {
		now = 0 // it is not looked up
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

// exchange is what it answers otherwise. It returns ErrGone where the session must renew.
func (o *oracle) exchange(x message.Exchange) (message.Exchanged, error) {
	own, capacity := x.Session, o.capacity
	wanted := len(x.Waits) + len(x.Tries) + len(x.Ask)
	if o.epoch != x.Epoch || wanted > 0 && !o.isLive(own, o.now) {
		return message.Exchanged{}, message.ErrGone
	}
	out := message.Exchanged{Now: o.now, Granted: []string{}, Refused: []string{}, Crowded: []string{}, NoMemory: []string{}}
	shut := !o.openGate()
	o.learn(own, x.MoveMicros)
	for _, id := range x.Release {
		o.drop(id)
	}
	for _, request := range x.Drop {
		_, ids := parsed(request)
		held := false
		for _, id := range ids {
			held = o.drop(id) || held
		}
		if !held {
			delete(o.Queue, request)
		}
	}

	purged := false
	room := func(n int64) int64 {
		if !purged && o.grantable(n, o.free(capacity), own) < n {
			purged = true
			o.purge(own)
		}
		return o.grantable(n, o.free(capacity), own)
	}
	if len(o.Queue) > 0 && !shut {
		purged = true
		o.purge(own)
		out.Granted = append(out.Granted, o.pump(capacity, own)...)
	}

	before, asked := len(o.Queue), false
	ask := func(kind message.Kind, request string) {
		joins := kind == message.Join
		if joins {
			kind = message.Pool
		}
		ttl, ids := parsed(request)
		n := int64(len(ids))
		var held []string
		for _, id := range ids {
			if o.isQuarantined(id) {
				out.Refused = append(out.Refused, ids[0])
				return
			}
			if _, ok := o.Permits[id]; ok {
				held = append(held, id)
			}
		}
		if len(held) == len(ids) || len(held) > 0 && kind == message.Pool {
			for _, id := range held {
				o.Permits[id] = o.now + ttl
			}
			out.Granted = append(out.Granted, held...)
			return
		}
		if len(held) > 0 { // what is all or none was torn apart by somebody's hand
			out.Refused = append(out.Refused, ids[0])
			return
		}
		lacking, _ := o.lacking(own)
		some := int64(0)
		if (len(o.Queue) == 0 || lacking >= n) && !shut && kind != message.Hold {
			some = room(n)
			if kind == message.Pool && some > 0 {
				some = o.atOnce(sharerOf(ids[0]), some, capacity, joins)
			}
		}
		switch {
		case some == n || kind == message.Pool && some > 0:
			for _, id := range ids[:some] {
				o.grant(id, ttl)
			}
			if kind == message.Pool {
				request = message.Permits(ttl, ids[0])
			}
			delete(o.Queue, request) // who has a minimum can be served out of turn
			out.Granted = append(out.Granted, ids[:some]...)
		case kind == message.Pool:
			asked = o.enqueue(&out, message.Permits(ttl, ids[0]), ids[0], n, x.MaxWaiting) || asked
		case kind == message.Wait && n <= capacity:
			asked = o.enqueue(&out, request, ids[0], n, x.MaxWaiting) || asked
		default:
			out.Refused = append(out.Refused, ids[0])
		}
	}
	for _, id := range x.Waits {
		ask(message.Wait, message.Permits(x.TTLMillis, id))
	}
	for _, id := range x.Tries {
		ask(message.Try, message.Permits(x.TTLMillis, id))
	}
	for _, a := range x.Ask {
		ask(a.Kind, a.Request)
	}
	if asked && !shut {
		out.Granted = append(out.Granted, o.pump(capacity, own)...)
	}
	look, fresh := int64(0), false
	if len(o.Queue) > 0 && !shut {
		look, fresh = o.askLook(own)
	}
	movesOn := !shut && !o.awaitsLook()
	if movesOn && len(o.Queue) > 0 && (asked && before == 0 || fresh) {
		for i, sharer := range o.largest() {
			if int64(i) < oracleTold {
				o.push(sessionOf(sharer), "w "+sharer)
			}
		}
	}

	waiting := int64(len(o.Queue))
	answers := false
	if x.Offered > 0 && waiting > 0 && movesOn {
		o.forgetPromises()
		unpromised := -int64(len(o.Promises))
		for _, w := range o.inNeed() {
			if w.sharer != x.Offerer {
				unpromised += w.wants
			}
		}
		n := min(int64(x.Offered), max(0, unpromised), o.share(x.Offerer))
		if lacking, ok := o.lacking(own); ok {
			n = min(n, max(0, -lacking))
		}
		for range n {
			o.promise(x.Offerer, o.now, " o")
		}
		answers = n > 0
	}
	if waiting+int64(len(o.Promises)) > 0 && movesOn {
		o.balance(capacity)
	}
	if answers {
		out.Promised = o.tally(x.Offerer)
	}
	if out.Waiting = waiting; waiting > 0 {
		switch first := byScore(o.Permits); {
		case shut && o.num("early") > o.now:
			out.Wake = o.num("early")
		case shut:
			out.Wake = o.gate
		case len(first) > 0:
			out.Wake = o.Permits[first[0]]
		}
		if !shut && o.free(capacity) > 0 && o.calm() > o.now {
			out.Wake = o.calm()
		}
		if look > 0 && (out.Wake == 0 || look < out.Wake) {
			out.Wake = look
		}
	}
	out.Free = max(0, o.free(capacity))
	o.end()
	return out, nil
}

// enqueue puts a request behind all others of its rank, and reports whether the queue is another now. What it waits for already, it keeps its turn for.
func (o *oracle) enqueue(out *message.Exchanged, request, id string, n int64, most int) bool {
	old, waits := o.Queue[request]
	if !waits && most > 0 && len(o.Queue) >= most && !isShared(id) {
		out.Crowded = append(out.Crowded, id)
		return false
	}
	turn, rank := old%oracleRank/oracleWants, o.rank(id)
	if !waits || rank == oracleLevels && old/oracleRank > oracleLevels {
		turn = o.seq()
	}
	o.Queue[request] = rank*oracleRank + turn*oracleWants + min(n, oracleWants) - 1
	return o.Queue[request] != old
}

// rank: what a minimum lacks goes first, then those who hold nothing, then those who hold least for their weight.
func (o *oracle) rank(id string) int64 {
	if lacking, _ := o.lacking(sessionOf(id)); lacking > 0 {
		return 0
	}
	if held := o.Held[sharerOf(id)]; isShared(id) && held > 0 {
		return min(8191, oracleLevels+max(1, oracleLevels*held/weightOf(id)))
	}
	return oracleLevels
}
