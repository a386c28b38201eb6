package redisscript

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the oracle that says how sessions join, renew and leave.

func (o *oracle) endSession(session string) {
	delete(o.Sessions, session)
	delete(o.Capacities, session)
	delete(o.Info, session)
}

// others are the sessions that listen beside own.
func (o *oracle) others(own string) []string {
	return slices.DeleteFunc(slices.Clone(o.listeners), func(s string) bool { return s == own })
}

func (o *oracle) closeGate(ttl int64, others []string) {
	for _, session := range others {
		o.push(session, "l")
	}
	o.gate = o.now + ttl
	o.setNum("gate", o.gate)
	o.setNum("early", o.now+ttl*45/100)
	o.setNum("known", 0)
	o.setNum("news", 0)
}

func (o *oracle) renew(n message.Renewal) (message.Renewed, error) {
	own, joins, sweeps := n.Session, n.Epoch == "", o.now/n.TTLMillis > o.last/n.TTLMillis
	fresh := false
	if joins && o.epoch != "" && 2*(o.now-o.num("last")) > min(n.TTLMillis, o.lease) && len(o.others(own)) > 0 {
		o.now = o.num("last")
		o.setSkew(o.time - o.now)
	}
	lost := !joins && n.Epoch != o.epoch
	if o.epoch == "" {
		o.epoch, o.gate = n.NewEpoch, 0
		for _, m := range []map[string]int64{o.Sessions, o.Capacities, o.Held, o.Debts, o.Promises, o.Reserves, o.Recalls, o.Moves} {
			clear(m)
		}
		clear(o.Info)
		clear(o.Shares)
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
		if others := o.others(own); lost || len(others) > 0 {
			o.closeGate(n.TTLMillis, others)
		} else {
			fresh = true
		}
	} else if lost && o.gate == 0 {
		o.closeGate(n.TTLMillis, o.others(own))
	}
	if _, ok := o.Meta["limit"]; lost && n.Limit > 0 && !ok {
		o.setNum("limit", n.Limit)
	}

	var gone []string
	for session, expiry := range o.Sessions {
		if expiry <= o.now {
			gone = append(gone, session)
			o.endSession(session)
		}
	}
	if len(gone) > 0 {
		o.forget(slices.DeleteFunc(slices.Clone(gone), func(s string) bool { return s == own })...)
		for request := range o.Queue {
			_, ids := parsed(request)
			if session := sessionOf(ids[0]); slices.Contains(gone, session) || session == own && !o.isLive(own, o.now) {
				delete(o.Queue, request)
			}
		}
	}

	if sweeps {
		maps.DeleteFunc(o.Promises, func(_ string, expiry int64) bool { return expiry > o.now+oraclePromise+oracleFar })
		maps.DeleteFunc(o.Moves, func(_ string, until int64) bool { return until > o.now+oracleMoving })
		maps.DeleteFunc(o.Reserves, func(field string, _ int64) bool {
			_, session, _ := strings.Cut(field, " ")
			_, known := o.Sessions[session]
			return session != own && !known
		})
		if o.reserving() {
			o.sumReserves()
		}
	}

	minimum := int64(n.Min)
	if minimum > 0 {
		room := int64(n.Capacity)
		for _, c := range o.Capacities {
			room = min(room, c)
		}
		if limit, ok := o.Meta["limit"]; ok {
			room, _ = strconv.ParseInt(limit, 10, 64)
		}
		taken := int64(0)
		for field, m := range o.Reserves {
			if strings.HasPrefix(field, "min ") && field != "min "+own {
				taken += m
			}
		}
		if joins && taken+minimum > room {
			return message.Renewed{}, message.RefusedMin{Others: taken, Capacity: room}
		}
		minimum = max(0, min(minimum, room-taken))
	}

	if _, known := o.Sessions[own]; !known && o.gate > o.now && !lost {
		o.setNum("news", o.num("news")+1)
	}
	o.Sessions[own], o.Capacities[own], o.Info[own] = o.now+n.TTLMillis, int64(n.Capacity), n.Info
	if len(o.Capacities) > len(o.Sessions) {
		for session := range o.Capacities {
			if _, known := o.Sessions[session]; !known {
				o.Sessions[session] = o.now + n.TTLMillis
			}
		}
	}
	o.setNum("last", o.now)
	o.countLease(n.TTLMillis, fresh)
	if joins {
		o.note("young", oracleYoung)
	}
	o.learn(own, n.MoveMicros)
	capacity := o.effectiveCapacity()

	o.purge(own)
	o.forgetPromises()
	missing := []string{}
	for _, id := range n.Permits {
		_, there := o.Permits[id]
		_, parted := o.Quarantine[id]
		switch {
		case parted && o.fence:
			missing = append(missing, id)
		case there:
			o.Permits[id] = o.now + n.TTLMillis
		case lost && (o.now < o.gate || o.free(capacity) > 0):
			o.Permits[id] = o.now + n.TTLMillis
			o.change++
		default:
			missing = append(missing, id)
		}
	}

	told, owing, redebted := make([]message.Tally, 0), int64(0), false
	for _, s := range n.Pools {
		held, debt, counted := int64(s.Held), int64(s.Owed), o.Debts[s.Name]
		told = append(told, o.tally(s.Name))
		switch {
		case lost:
			debt = counted
		case s.Heard.Recalled > o.tally(s.Name).Recalled || s.Heard.Withdrawn > o.tally(s.Name).Withdrawn:
			debt = counted
		case s.Heard != o.tally(s.Name):
			debt = max(debt, counted)
		}
		debt = min(held, debt)
		owing += debt
		if o.Held[s.Name] != held || counted != debt {
			redebted = redebted || counted != debt
			delete(o.Held, s.Name)
			delete(o.Debts, s.Name)
			o.add(o.Held, s.Name, held)
			o.add(o.Debts, s.Name, debt)
			o.place(s.Name, held-debt)
			for range max(0, counted-debt) {
				o.keepPromise(s.Name)
			}
		}
	}

	was, had := o.Reserves["min "+own]
	if minimum > 0 || had {
		free, counted := o.Reserves["free "+own]
		if redebted || !counted || !had || was != minimum || free != minimum-int64(len(n.Permits)-len(missing))+owing {
			free = minimum + owing
			for _, id := range o.held() {
				if sessionOf(id) == own {
					free--
				}
			}
			o.Reserves["min "+own], o.Reserves["free "+own] = minimum, free
		}
		o.sumReserves()
	}

	covered := 0
	for i, backend := range n.Backends {
		if backend == "" {
			continue
		}
		covered++
		if !slices.Contains(missing, n.Permits[i]) {
			o.cover(n.Permits[i], backend)
		}
	}
	if covered > 0 {
		o.fence = true
		o.setNum("fence", 1)
	}
	if o.fence && len(o.Backends) > len(o.Permits) {
		maps.DeleteFunc(o.Backends, func(id, _ string) bool { _, held := o.Permits[id]; return !held })
	}
	quarantine := []string{}
	if o.fence {
		for _, id := range slices.Sorted(maps.Keys(o.Quarantine)) {
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
	}

	if lost && o.gate > o.now && n.Sessions > o.num("known") {
		o.setNum("known", n.Sessions)
	}
	if o.openGate() {
		o.pump(capacity, "")
		if len(o.Queue) > 0 {
			o.askLook(own)
		}
		if len(o.Queue)+len(o.Promises) > 0 && !o.awaitsLook() {
			o.balance(capacity)
		}
	}
	o.drain(capacity)
	o.end()
	listeners := int64(-1)
	if !joins {
		o.push(own, "h")
		listeners = 0
		if slices.Contains(o.listeners, own) {
			listeners = 1
		}
	}
	return message.Renewed{Now: o.now, Epoch: o.epoch, Capacity: capacity, Waiting: int64(len(o.Queue)), Sharded: o.sharded, PausedUntil: o.gate,
		Missing: missing, Limit: o.num("limit"), Recalls: told, Min: minimum, Sessions: int64(len(o.Sessions)),
		Quarantine: quarantine, Subscribers: listeners}, nil
}

func (o *oracle) leave(session, epoch string, drop []string) {
	for _, request := range drop {
		delete(o.Queue, request)
		_, ids := parsed(request)
		for _, id := range ids {
			o.drop(id)
		}
	}
	o.endSession(session)
	o.forget(session)
	o.purge("")
	if o.epoch != "" && o.epoch == epoch && len(o.Sessions) > 0 && o.openGate() {
		capacity := o.effectiveCapacity()
		o.pump(capacity, session)
		if len(o.Promises) > 0 {
			o.balance(capacity)
		}
	}
	o.end()
}

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
	o.purge("")
	if o.epoch != "" && o.openGate() {
		o.pump(capacity, "")
	}
	if o.epoch != "" {
		o.drain(capacity)
	}
	o.end()
	return capacity
}
