package redisscript

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the oracle for quarantine.lua, looks.lua, record.lua and gone.lua: what becomes of
// permits that cover backends.

// expireLeases ends the leases that have expired. A permit that covers a backend stays counted, for
// no session, until its backend is gone or the bound has passed.
func (o *oracle) expireLeases(own string) {
	quarantined := false
	for _, id := range byScore(o.Permits) {
		if o.Permits[id] > o.now {
			continue
		}
		record, covers := o.Backends[id]
		covers = covers && namesBackend(record)
		switch {
		case o.fence && covers:
			o.quarantine(id, record)
			quarantined = true
		case o.isQuarantined(id):
			delete(o.Permits, id)
			o.change--
			if o.Quarantine[id] == noBackend {
				delete(o.Quarantine, id)
			}
		default:
			o.release(id)
		}
	}
	if quarantined {
		o.chooseFencer(own)
	}
}

func (o *oracle) quarantine(id, record string) {
	until := o.now + oracleBound
	if len(o.Quarantine) > 0 {
		until += oracleBehind
	}
	delete(o.Backends, id)
	o.Permits[id] = until
	fields := strings.Fields(record)
	o.Quarantine[id] = fmt.Sprintf("%s %s %d", fields[0], fields[1], o.now+oracleAsked)
	o.uncount(id)
}

// chooseFencer has one session end what is in quarantine: own, if it can ask Postgres, or one of
// the others that can.
func (o *oracle) chooseFencer(own string) {
	var able []string
	for id, record := range o.Backends {
		switch session := sessionOf(id); {
		case !namesBackend(record):
		case session == own:
			o.pushFence(own)
			return
		case !slices.Contains(able, session) && o.isLive(session, o.now):
			able = append(able, session)
		}
	}
	if len(able) > 0 {
		slices.Sort(able)
		o.pushFence(able[o.seq()%int64(len(able))])
	}
}

func (o *oracle) pushFence(session string) {
	text := "f"
	for _, id := range o.endsInQuarantine() {
		record := o.Quarantine[id]
		text += " " + id + " " + record[:strings.LastIndexByte(record, ' ')]
	}
	if text != "f" {
		o.push(session, text)
	}
}

// namesBackend reports whether a record is of a backend. Between two connections under a permit it
// is not.
func namesBackend(record string) bool { return !strings.HasPrefix(record, "0 ") }

func (o *oracle) isQuarantined(id string) bool {
	_, is := o.Quarantine[id]
	return o.fence && is
}

// awaitsLook reports whether a look comes before everything else: it may free what is wanted.
func (o *oracle) awaitsLook() bool {
	until := o.num("await")
	return o.fence && until > o.now && until <= o.now+oracleUnanswered
}

// awaitEnd is until when looks that began then come first: until a session has answered, and for a
// time at least, and at most.
func (o *oracle) awaitEnd(began int64) int64 {
	answered := o.num("answered")
	if answered > o.now || answered < began {
		return began + oracleUnanswered
	}
	return max(began+oracleAwait, answered)
}

// askLook has one session look for the backends of sessions that are not subscribed. It returns
// when the next look may be, if that matters, and whether looks began a short time ago.
func (o *oracle) askLook(own string) (next int64, fresh bool) {
	if !o.fence {
		return 0, false
	}
	last := o.num("look")
	if last > o.now+oracleDenied {
		last = 0
	}
	if last > o.now {
		if o.awaitsLook() {
			return last, false
		}
		return 0, false
	}
	o.setNum("look", o.now+oracleLook)
	able, suspects, seen := o.findSuspects(own)
	if len(able) == 0 || len(suspects) == 0 {
		awaited := o.awaitsLook()
		delete(o.Meta, "await")
		if o.isLive(own, o.now) && !slices.Contains(o.listeners, own) {
			o.setNum("look", o.now+oracleLook/2)
		}
		return o.now + oracleLook, awaited
	}
	if began := o.num("looks"); began == 0 || began > o.now || o.now-last > oracleDenied {
		o.setNum("looks", o.now)
	}
	end := o.awaitEnd(o.num("looks"))
	if delete(o.Meta, "await"); seen <= len(o.Queue) {
		o.setNum("await", end)
	}
	turn, text := o.seq(), fmt.Sprintf("s %s %d", o.epoch, o.num("looks"))
	for i := range min(int64(len(suspects)), oracleEnds) {
		text += " " + suspects[(turn+i+1)%int64(len(suspects))]
	}
	o.push(able[turn%int64(len(able))], text)
	return o.now + oracleLook, o.now < end+oracleAwait
}

// findSuspects lists the sessions that can look, and the recorded backends to look for. subscribed
// counts the backends of sessions that are subscribed.
func (o *oracle) findSuspects(own string) (able, suspects []string, subscribed int) {
	for id, record := range o.Backends {
		session := sessionOf(id)
		listens := slices.Contains(o.listeners, session)
		switch {
		case !namesBackend(record) || !o.isLive(session, o.now):
		case listens:
			subscribed++
			if !slices.Contains(able, session) {
				able = append(able, session)
			}
		case session != own:
			suspects = append(suspects, id+" "+record)
		}
	}
	slices.Sort(able)
	slices.Sort(suspects)
	return able, suspects, subscribed
}

// gone is the script gone. It frees the permits whose recorded backend is gone, and forgets what
// their sessions wait for. If it frees none, looks have had their answer.
func (o *oracle) gone(epoch string, since int64, ids, records []string) (freed int64) {
	defer o.end()
	if !o.fence || o.epoch == "" || o.epoch != epoch {
		return 0
	}
	var owners []string
	for i, id := range ids {
		if o.Backends[id] == records[i] && o.release(id) {
			freed++
			owners = append(owners, sessionOf(id))
		}
	}
	if freed == 0 {
		if since == o.num("looks") && since <= o.now {
			if answered := o.num("answered"); answered < since || answered > o.now {
				o.setNum("answered", o.now)
			}
			if o.awaitsLook() {
				o.setNum("await", o.awaitEnd(since))
			}
		}
		return 0
	}
	delete(o.Meta, "look")
	delete(o.Meta, "looks")
	delete(o.Meta, "answered")
	maps.DeleteFunc(o.Queue, func(request string, _ int64) bool {
		_, ids := parsed(request)
		return slices.Contains(owners, sessionOf(ids[0]))
	})
	o.movePermits(o.capacity)
	return freed
}

// recordBackend keeps the later one of two records of a permit: the one with the higher number.
func (o *oracle) recordBackend(id, record string) {
	number := func(text string) int {
		n, _ := strconv.Atoi(text[strings.LastIndexByte(text, ' ')+1:])
		return n
	}
	if known, ok := o.Backends[id]; !ok || number(known) < number(record) {
		o.Backends[id] = record
	}
}

// record is the script record.
func (o *oracle) record(session, epoch, id, record string) error {
	if o.epoch == "" || o.epoch != epoch {
		return message.ErrGone
	}
	if o.isQuarantined(id) || o.Permits[id] <= o.now {
		return message.ErrNotHeld
	}
	o.setNum("fence", 1)
	o.recordBackend(id, record)
	if len(o.Quarantine) > 0 {
		o.pushFence(session)
	}
	return nil
}
