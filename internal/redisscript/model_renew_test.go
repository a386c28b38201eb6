package redisscript

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the oracle for renew.lua, leave.lua and capacity.lua: how a session joins, renews and
// leaves.

// A renewal is one run of the script renew.
type renewal struct {
	*oracle
	n     message.Renewal
	own   string
	joins bool
	lost  bool // the session knows another state than this one
	fresh bool // the state is new, and nobody has anything to re-assert
}

func (o *oracle) renew(n message.Renewal) (message.Renewed, error) {
	r := &renewal{oracle: o, n: n, own: n.Session, joins: n.Epoch == ""}
	sweeps := o.now/n.TTLMillis > o.last/n.TTLMillis
	r.startState()
	r.restorePause()
	o.endPause()
	r.endSessions()
	if sweeps {
		r.sweep()
	}
	minimum, err := r.boundMinimum()
	if err != nil {
		return message.Renewed{}, err
	}
	r.keepSession()
	o.learnMove(r.own, n.MoveMicros)
	capacity := o.effectiveCapacity()
	o.expireLeases(r.own)
	o.forgetPromises()
	missing, restored := r.renewPermits(capacity)
	told, owing, changed := r.settlePools()
	r.settleMinimum(minimum, len(n.Permits)-len(missing), owing, changed || restored > 0)
	quarantine := r.recordBackends(missing)
	if sweeps && o.anyMinimum() {
		r.sweepQueue(capacity)
	}

	if r.lost && o.pausedUntil > o.now && n.Sessions > o.num("known") {
		o.setNum("known", n.Sessions)
	}
	if o.mayGrant() {
		o.grantQueue(capacity, "")
		if len(o.Queue) > 0 {
			o.askLook(r.own)
		}
		if len(o.Queue)+len(o.Promises) > 0 && !o.awaitsLook() {
			o.balance(capacity)
		}
	}
	o.drain(capacity)
	o.end()
	subscribers := int64(-1)
	if !r.joins {
		o.push(r.own, "h")
		subscribers = 0
		if slices.Contains(o.listeners, r.own) {
			subscribers = 1
		}
	}
	return message.Renewed{Now: o.now, Epoch: o.epoch, Capacity: capacity,
		Waiting: int64(len(o.Queue)), Sharded: o.sharded, PausedUntil: o.pausedUntil,
		Missing: missing, Limit: o.num("limit"), Recalls: told, Min: minimum,
		Sessions: int64(len(o.Sessions)), Quarantine: quarantine, Subscribers: subscribers,
		Pause: o.Meta["pause"]}, nil
}

// startState begins a new state if there is none. If another state was there, it pauses grants.
func (r *renewal) startState() {
	o, n := r.oracle, r.n
	others := slices.DeleteFunc(slices.Clone(o.listeners), func(s string) bool { return s == r.own })
	if r.joins {
		o.noticeStep(min(n.TTLMillis, o.lease), r.own)
	}
	r.lost = !r.joins && n.Epoch != o.epoch
	switch {
	case o.epoch == "":
		r.clear()
		if r.lost || len(others) > 0 {
			o.pauseGrants(n.TTLMillis, others)
		} else {
			r.fresh = true
		}
	case r.lost && o.pausedUntil == 0:
		o.pauseGrants(n.TTLMillis, others)
	}
	if _, ok := o.Meta["limit"]; r.lost && n.Limit > 0 && !ok {
		o.setNum("limit", n.Limit)
	}
}

// clear begins a state with what permits and requests are there.
func (r *renewal) clear() {
	o := r.oracle
	o.epoch, o.pausedUntil = fmt.Sprintf("%s.%d", r.n.NewEpoch, o.now), 0
	for _, m := range []map[string]int64{
		o.Sessions, o.Capacities, o.Held, o.Debts, o.Promises, o.Reserves, o.Recalls, o.Moves,
	} {
		clear(m)
	}
	clear(o.Info)
	clear(o.Levels)
	o.Meta["epoch"] = o.epoch
	o.setNum("gate", 0)
	count := int64(0)
	for id := range o.Permits {
		if isOurs(id) {
			count++
		}
	}
	o.setNum("count", count)
	seq := o.num("seq")
	for _, score := range o.Queue {
		seq = max(seq, score%oracleRank/oracleWants)
	}
	o.setNum("seq", seq)
	delete(o.Meta, "reserve")
	if o.fence {
		o.setNum("fence", 1)
	}
}

// pauseGrants pauses grants for a lease, and has those who listen re-assert what they hold.
func (o *oracle) pauseGrants(ttl int64, listeners []string) {
	for _, session := range listeners {
		o.push(session, "l")
	}
	o.pausedUntil = o.now + ttl
	o.setNum("gate", o.pausedUntil)
	o.setNum("early", o.now+ttl*45/100)
	o.setNum("known", 0)
	o.setNum("news", int64(max(len(o.Sessions), len(o.Info))))
}

// endSessions removes the sessions that have not renewed in time, and their requests.
func (r *renewal) endSessions() {
	o := r.oracle
	var ended []string
	for session, expiry := range o.Sessions {
		if expiry <= o.now {
			ended = append(ended, session)
			o.removeSession(session)
		}
	}
	if len(ended) == 0 {
		return
	}
	isOwn := func(s string) bool { return s == r.own }
	o.forgetSessions(slices.DeleteFunc(slices.Clone(ended), isOwn)...)
	for request := range o.Queue {
		_, ids := parsed(request)
		session := sessionOf(ids[0])
		if slices.Contains(ended, session) || session == r.own && !o.isLive(r.own, o.now) {
			delete(o.Queue, request)
		}
	}
}

// keepSession has the session live for another lease.
func (r *renewal) keepSession() {
	o, n := r.oracle, r.n
	_, known := o.Sessions[r.own]
	_, told := o.Info[r.own]
	if !r.lost {
		o.Info[r.own] = n.Info
		if !told && (r.joins || !known) && o.pausedUntil > o.now {
			o.setNum("news", o.num("news")+1)
		}
	}
	o.Sessions[r.own], o.Capacities[r.own] = o.now+n.TTLMillis, int64(n.Capacity)
	if len(o.Capacities) > len(o.Sessions) { // an operator has deleted the sessions
		for session := range o.Capacities {
			if _, known := o.Sessions[session]; !known {
				o.Sessions[session] = o.now + n.TTLMillis
			}
		}
	}
	o.setNum("last", o.now)
	o.keepShortestLease(n.TTLMillis, r.fresh)
	if r.joins {
		o.note("young", oracleYoung)
	}
}

// renewPermits extends the leases that the session names, and returns those that are not held.
// After a loss of state it puts them back, as long as there is room.
func (r *renewal) renewPermits(capacity int64) (missing []string, restored int) {
	o, until := r.oracle, r.now+r.n.TTLMillis
	missing = []string{}
	for _, id := range r.n.Permits {
		_, there := o.Permits[id]
		switch {
		case o.isQuarantined(id):
			missing = append(missing, id)
		case there:
			o.Permits[id] = until
		case r.lost && (o.now < o.pausedUntil || o.free(capacity) > 0):
			o.Permits[id] = until
			o.change++
			restored++
		default:
			missing = append(missing, id)
		}
	}
	return missing, restored
}

// settlePools replaces the counts of pools by what the session says. It returns the tally of each,
// how many permits they owe together, and whether a debt has changed.
func (r *renewal) settlePools() (told []message.Tally, owing int64, changed bool) {
	o := r.oracle
	told = make([]message.Tally, 0)
	for _, p := range r.n.Pools {
		held, debt, counted := int64(p.Held), int64(p.Owed), o.Debts[p.Name]
		tally := o.tally(p.Name)
		told = append(told, tally)
		switch {
		case r.lost:
			debt = counted
		case p.Heard.Recalled > tally.Recalled || p.Heard.Withdrawn > tally.Withdrawn:
			debt = counted
		case p.Heard != tally:
			debt = max(debt, counted)
		}
		debt = min(held, debt)
		owing += debt
		if o.Held[p.Name] == held && counted == debt {
			continue
		}
		changed = changed || counted != debt
		delete(o.Held, p.Name)
		delete(o.Debts, p.Name)
		o.add(o.Held, p.Name, held)
		o.add(o.Debts, p.Name, debt)
		o.place(p.Name, held-debt)
		for range max(0, counted-debt) {
			o.fulfilPromise(p.Name)
		}
	}
	return told, owing, changed
}

// settleMinimum counts anew what the session's minimum lacks.
func (r *renewal) settleMinimum(minimum int64, held int, owing int64, changed bool) {
	o := r.oracle
	was, had := o.Reserves["min "+r.own]
	if minimum <= 0 && !had {
		return
	}
	free, counted := o.Reserves["free "+r.own]
	expected := minimum - int64(held) + owing
	if changed || !counted || !had || was != minimum || free != expected {
		free = minimum + owing
		for _, id := range o.held() {
			if sessionOf(id) == r.own {
				free--
			}
		}
		o.Reserves["min "+r.own], o.Reserves["free "+r.own] = minimum, free
	}
	o.sumReserves()
}

// recordBackends records again which backends the session's permits cover. It returns those in
// quarantine, if the session can end backends.
func (r *renewal) recordBackends(missing []string) (quarantine []string) {
	o, covered := r.oracle, 0
	for i, record := range r.n.Backends {
		if record == "" {
			continue
		}
		covered++
		if !slices.Contains(missing, r.n.Permits[i]) {
			o.recordBackend(r.n.Permits[i], record)
		}
	}
	if covered > 0 {
		o.fence = true
		o.setNum("fence", 1)
	}
	if o.fence && len(o.Backends) > len(o.Permits) {
		maps.DeleteFunc(o.Backends, func(id, _ string) bool {
			_, held := o.Permits[id]
			return !held
		})
	}
	quarantine = []string{}
	if !o.fence {
		return quarantine
	}
	for _, id := range o.endsInQuarantine() {
		fields := strings.Fields(o.Quarantine[id])
		if until, _ := strconv.ParseInt(fields[2], 10, 64); until < o.now {
			delete(o.Quarantine, id)
		} else if covered > 0 {
			quarantine = append(quarantine, id, o.Quarantine[id])
		}
	}
	if len(o.Backends)+len(o.Quarantine) == 0 {
		delete(o.Meta, "fence")
	}
	return quarantine
}

// leave is the script leave.
func (o *oracle) leave(session, epoch string, drop []string) {
	for _, request := range drop {
		delete(o.Queue, request)
		_, ids := parsed(request)
		for _, id := range ids {
			o.release(id)
		}
	}
	o.removeSession(session)
	o.forgetSessions(session)
	o.expireLeases("")
	if o.epoch != "" && o.epoch == epoch && len(o.Sessions) > 0 && o.mayGrant() {
		capacity := o.effectiveCapacity()
		o.grantQueue(capacity, session)
		if len(o.Promises) > 0 && !o.awaitsLook() {
			o.balance(capacity)
		}
	}
	o.end()
}

// setCapacity is the script capacity.
func (o *oracle) setCapacity(n int64) int64 {
	delete(o.Meta, "limit")
	delete(o.Meta, "limitby")
	delete(o.Meta, "limitat")
	if n > 0 {
		o.setNum("limit", n)
		o.setNum("limitat", o.now)
		o.Meta["limitby"] = "op"
	}
	capacity := o.effectiveCapacity()
	o.expireLeases("")
	if o.epoch != "" && o.mayGrant() {
		o.grantQueue(capacity, "")
	}
	if o.epoch != "" {
		o.drain(capacity)
	}
	o.end()
	return capacity
}
