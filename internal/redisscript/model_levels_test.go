package redisscript

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the oracle for levels.lua and queue.lua: what pools and sessions hold, owe and keep,
// and what the head of the queue is granted.

func (o *oracle) anyMinimum() bool { _, ok := o.Meta["reserve"]; return ok }

// minLacks returns what a session's minimum lacks. Below zero, the session could give so many back.
// ok is false if it has no minimum.
func (o *oracle) minLacks(session string) (free int64, ok bool) {
	free, ok = o.Reserves["free "+session]
	return free, ok && o.anyMinimum()
}

// adjustMin notes that a session holds n more permits that it does not owe.
func (o *oracle) adjustMin(session string, n int64) {
	if free, ok := o.minLacks(session); ok {
		o.Reserves["free "+session] = free - n
		if change := max(0, free-n) - max(0, free); change != 0 {
			o.setNum("reserve", o.num("reserve")+change)
		}
	}
}

// sumReserves sums up what all minima lack.
func (o *oracle) sumReserves() {
	sum, any := int64(0), false
	for field, n := range o.Reserves {
		if strings.HasPrefix(field, "free ") {
			any = true
			sum += max(0, n)
		}
	}
	delete(o.Meta, "reserve")
	if any {
		o.setNum("reserve", sum)
	}
}

// grantable returns how many of n permits a session may have of those that are free: the minima of
// others come first.
func (o *oracle) grantable(n, free int64, session string) int64 {
	n = min(n, free)
	if o.anyMinimum() && n > 0 {
		lacks, _ := o.minLacks(session)
		n = min(n, max(0, lacks)+max(0, free-o.num("reserve")))
	}
	return n
}

// keptBy returns how many permits a pool holds and does not owe.
func (o *oracle) keptBy(pool string) int64 { return max(0, o.Held[pool]-o.Debts[pool]) }

// place puts a pool at its level among those that can give a permit.
func (o *oracle) place(pool string, kept int64) {
	if kept <= 0 {
		delete(o.Levels, pool)
		return
	}
	since := float64(o.now)
	if w := weightOf(pool); kept == 1 && w > 1 {
		length, _ := o.cycle(o.capacity)
		since += float64(w-1) * length
	}
	o.Levels[pool] = float64(kept-1)/float64(weightOf(pool)) - since/8796093022208
}

func (o *oracle) add(counts map[string]int64, name string, n int64) {
	if counts[name] += n; counts[name] <= 0 {
		delete(counts, name)
	}
}

// release ends a lease, and reports whether there was one.
func (o *oracle) release(id string) bool {
	inQuarantine := false
	if o.fence {
		_, inQuarantine = o.Quarantine[id]
		delete(o.Backends, id)
		delete(o.Quarantine, id)
	}
	if _, ok := o.Permits[id]; !ok {
		return false
	}
	delete(o.Permits, id)
	if isOurs(id) {
		o.change--
	}
	if !inQuarantine {
		o.uncount(id)
	}
	return true
}

// uncount undoes what a permit counts for its pool and its session.
func (o *oracle) uncount(id string) {
	owed := false
	if pool := poolOf(id); isPooled(id) {
		held := o.Held[pool] - 1
		o.add(o.Held, pool, -1)
		if held <= 0 {
			delete(o.Moves, pool)
		}
		if owed = o.Debts[pool] > 0; owed {
			o.add(o.Debts, pool, -1)
			o.fulfilPromise(pool)
		} else {
			o.place(pool, held)
		}
	}
	if !owed {
		o.adjustMin(sessionOf(id), -1)
	}
}

// grant begins a lease, or extends it.
func (o *oracle) grant(id string, ttl int64) {
	_, held := o.Permits[id]
	o.Permits[id] = o.now + ttl
	if held {
		return
	}
	o.change++
	if pool := poolOf(id); isPooled(id) {
		o.Held[pool]++
		o.place(pool, o.Held[pool]-o.Debts[pool])
	}
	o.adjustMin(sessionOf(id), 1)
}

func (o *oracle) free(capacity int64) int64 { return capacity - int64(len(o.Permits)) }

// grantQueue grants to the head of the queue for as long as it fits. It returns the grants of own.
func (o *oracle) grantQueue(capacity int64, own string) (granted []string) {
	for _, head := range o.queued() {
		free := o.free(capacity)
		if free <= 0 {
			return granted
		}
		ttl, ids := parsed(head)
		n := int64(len(ids))
		switch session := sessionOf(ids[0]); {
		case !o.isLive(session, o.now):
			delete(o.Queue, head)
		case n > capacity:
			delete(o.Queue, head)
			o.push(session, "r")
		case o.grantable(n, free, session) < n, o.heldBack(ids[0], capacity):
			return granted
		default:
			delete(o.Queue, head)
			for _, id := range ids {
				if pool := poolOf(id); isPooled(id) && o.Held[pool] == 0 {
					o.Moves[pool] = o.now + oracleMoving
				}
				o.grant(id, ttl)
			}
			if session == own {
				granted = append(granted, ids...)
			} else {
				o.push(session, fmt.Sprintf("g %s %d %s", o.epoch, o.now, strings.Join(ids, " ")))
			}
		}
	}
	return granted
}

// readMeta reads a field of meta that counts only up to most.
func (o *oracle) readMeta(field string, otherwise, most int64) int64 {
	if _, ok := o.Meta[field]; !ok || o.num(field) > most {
		return otherwise
	}
	return o.num(field)
}

// note notes an event of a row. The row ends with a span without one.
func (o *oracle) note(row string, span int64) {
	if o.now-o.readMeta(row, 0, o.now) > span {
		o.setNum(row+"0", o.now)
	}
	o.setNum(row, o.now)
}

func (o *oracle) goesOnUntil(row string, span int64) int64 {
	return min(o.readMeta(row, 0, o.now)+span, o.readMeta(row+"0", 0, o.now)+oracleJoining)
}

func (o *oracle) youngUntil() int64 { return o.goesOnUntil("young", oracleYoung) }

func (o *oracle) calmUntil() int64 {
	return max(o.goesOnUntil("calm", oracleCalm), o.youngUntil())
}

// atOnce returns how many of n permits a pool may have before the calm is over: its even part.
func (o *oracle) atOnce(pool string, n, capacity int64, joins bool) int64 {
	if joins {
		o.note("calm", oracleCalm)
	} else if o.calmUntil() <= o.now {
		return n
	}
	if n == 1 && o.Held[pool] == 0 {
		return n
	}
	sum := int64(0)
	for session := range o.Sessions {
		sum += weightOf(session)
	}
	lacks, _ := o.minLacks(sessionOf(pool))
	part := max(1, capacity*weightOf(pool)/max(1, sum))
	if o.youngUntil() > o.now {
		part = 1
	}
	return min(n, max(0, part-o.Held[pool], lacks))
}

// heldBack reports whether a pool's request waits for the end of the calm.
func (o *oracle) heldBack(id string, capacity int64) bool {
	return isPooled(id) && o.calmUntil() > o.now && o.atOnce(poolOf(id), 1, capacity, false) == 0
}

// sweep deletes what no script can have written, or what belongs to nobody.
func (r *renewal) sweep() {
	o := r.oracle
	maps.DeleteFunc(o.Promises, func(_ string, expiry int64) bool {
		return expiry > o.now+oraclePromise+oracleFar
	})
	maps.DeleteFunc(o.Moves, func(_ string, until int64) bool { return until > o.now+oracleMoving })
	maps.DeleteFunc(o.Reserves, func(field string, _ int64) bool {
		_, session, _ := strings.Cut(field, " ")
		_, known := o.Sessions[session]
		return session != r.own && !known
	})
	if o.anyMinimum() {
		o.sumReserves()
	}
}

// sweepQueue takes requests from the head of the queue that the minima of others leave no room for.
func (r *renewal) sweepQueue(capacity int64) {
	o := r.oracle
	for _, request := range o.queued() {
		_, ids := parsed(request)
		n, session := int64(len(ids)), sessionOf(ids[0])
		if n == 1 || n <= capacity-o.minimaBesides(session) {
			return
		}
		delete(o.Queue, request)
		o.push(session, "r")
	}
}

// minimaBesides sums up the minima of the sessions but one.
func (s *state) minimaBesides(session string) (sum int64) {
	for other, n := range s.minima() {
		if other != session {
			sum += n
		}
	}
	return sum
}

// boundMinimum returns how many permits are kept for the session: what the minima of the others
// leave. It refuses a newcomer for whose minimum there is no room.
func (r *renewal) boundMinimum() (int64, error) {
	o, minimum := r.oracle, int64(r.n.Min)
	if minimum <= 0 {
		return minimum, nil
	}
	room := int64(r.n.Capacity)
	for _, c := range o.Capacities {
		room = min(room, c)
	}
	if limit, ok := o.Meta["limit"]; ok {
		room, _ = strconv.ParseInt(limit, 10, 64)
	}
	taken := o.minimaBesides(r.own)
	if r.joins && taken+minimum > room {
		return 0, message.RefusedMin{Others: taken, Capacity: room}
	}
	return max(0, min(minimum, room-taken)), nil
}
