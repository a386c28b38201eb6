package redisscript

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the oracle that says what becomes of permits that cover backends.

// purge ends leases. What covers a backend is counted on, for nobody, until that is gone or the bound has passed.
func (o *oracle) purge(own string) {
	isolated := false
	for _, id := range byScore(o.Permits) {
		if o.Permits[id] > o.now {
			continue
		}
		backend, covers := o.Backends[id]
		covers = covers && namesBackend(backend)
		parted := o.isQuarantined(id)
		switch {
		case o.fence && covers:
			until := o.now + oracleBound
			if len(o.Quarantine) > 0 {
				until += oracleBehind
			}
			delete(o.Backends, id)
			o.Permits[id] = until
			fields := strings.Fields(backend)
			o.Quarantine[id] = fmt.Sprintf("%s %s %d", fields[0], fields[1], o.now+oracleAsked)
			o.disown(id)
			isolated = true
		case parted:
			delete(o.Permits, id)
			o.change--
		default:
			o.drop(id)
		}
	}
	if !isolated {
		return
	}
	// own, if it has a backend to ask by, else one of those that have.
	var able []string
	for id, backend := range o.Backends {
		switch session := sessionOf(id); {
		case !namesBackend(backend):
		case session == own:
			o.askEnd(own)
			return
		case !slices.Contains(able, session) && o.isLive(session, o.now):
			able = append(able, session)
		}
	}
	if len(able) > 0 {
		slices.Sort(able)
		o.askEnd(able[o.seq()%int64(len(able))])
	}
}

func (o *oracle) askEnd(session string) {
	text := "f"
	for _, id := range slices.Sorted(maps.Keys(o.Quarantine)) {
		text += " " + id + " " + o.Quarantine[id][:strings.LastIndexByte(o.Quarantine[id], ' ')]
	}
	if text != "f" {
		o.push(session, text)
	}
}

// namesBackend: between two connections under a permit, the record names none.
func namesBackend(record string) bool { return !strings.HasPrefix(record, "0 ") }

// awaitsLook: what a look may free is not looked for elsewhere, for a while.
func (o *oracle) awaitsLook() bool {
	until := o.num("await")
	return o.fence && until > o.now && until <= o.now+oracleAwait
}

// askLook has one session look for the backends of those that do not listen. It returns when
// somebody may be asked again, if the next look matters.
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
	var able, suspects []string
	eyes := 0
	for id, record := range o.Backends {
		session := sessionOf(id)
		listens := slices.Contains(o.listeners, session)
		switch {
		case !namesBackend(record) || !o.isLive(session, o.now):
		case listens:
			eyes++
			if !slices.Contains(able, session) {
				able = append(able, session)
			}
		case !listens && session != own:
			suspects = append(suspects, id+" "+record)
		}
	}
	if len(able) == 0 || len(suspects) == 0 {
		delete(o.Meta, "await")
		if o.isLive(own, o.now) && !slices.Contains(o.listeners, own) {
			o.setNum("look", o.now+oracleLook/2)
		}
		return o.now + oracleLook, false
	}
	if began := o.num("looks"); began == 0 || began > o.now || o.now-last > oracleDenied {
		o.setNum("looks", o.now)
	}
	if delete(o.Meta, "await"); eyes <= len(o.Queue) {
		o.setNum("await", o.num("looks")+oracleAwait)
	}
	slices.Sort(able)
	slices.Sort(suspects)
	turn, text := o.seq(), "s "+o.epoch
	for i := range min(int64(len(suspects)), oracleEnds) {
		text += " " + suspects[(turn+i+1)%int64(len(suspects))]
	}
	o.push(able[turn%int64(len(able))], text)
	return o.now + oracleLook, o.now-o.num("looks") < 2*oracleAwait
}

// gone frees the permits whose backend is gone, if it is still the one recorded, and forgets what
// their sessions wait for.
func (o *oracle) gone(epoch string, ids, records []string) (freed int64) {
	defer o.end()
	if !o.fence || o.epoch == "" || o.epoch != epoch {
		return 0
	}
	var owners []string
	for i, id := range ids {
		if o.Backends[id] == records[i] && o.drop(id) {
			freed++
			owners = append(owners, sessionOf(id))
		}
	}
	if freed == 0 {
		return 0
	}
	delete(o.Meta, "look")
	delete(o.Meta, "looks")
	maps.DeleteFunc(o.Queue, func(request string, _ int64) bool {
		_, ids := parsed(request)
		return slices.Contains(owners, sessionOf(ids[0]))
	})
	if o.openGate() {
		o.pump(o.capacity, "")
		if len(o.Queue)+len(o.Promises) > 0 && !o.awaitsLook() {
			o.balance(o.capacity)
		}
	}
	return freed
}

func (o *oracle) isQuarantined(id string) bool {
	_, parted := o.Quarantine[id]
	return o.fence && parted
}

// cover: of two backends of a permit, the later one counts.
func (o *oracle) cover(id, backend string) {
	nth := func(text string) int {
		n, _ := strconv.Atoi(text[strings.LastIndexByte(text, ' ')+1:])
		return n
	}
	if known, ok := o.Backends[id]; !ok || nth(known) < nth(backend) {
		o.Backends[id] = backend
	}
}

// mark returns an error as Mark does.
func (o *oracle) mark(session, epoch, id, backend string) error {
	if o.epoch == "" || o.epoch != epoch {
		return message.ErrGone
	}
	if o.isQuarantined(id) || o.Permits[id] <= o.now {
		return message.ErrNotHeld
	}
	o.setNum("fence", 1)
	o.cover(id, backend)
	if len(o.Quarantine) > 0 {
		o.askEnd(session)
	}
	return nil
}
