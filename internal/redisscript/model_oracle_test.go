package redisscript

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The oracle says in plain Go what each script is to answer, to store and to push, given what is stored. It has no memory of its
// own, so a fault cannot hide in a state that both drift to; that what is stored makes sense is for promises_test to say.

// The scripts' constants, for how long and how many: what they are is a matter of taste.
var (
	oracleShort   = luaConstant("SHORTEST")
	oracleLevels  = luaConstant("LEVELS")
	oraclePromise = luaConstant("PROMISE")
	oracleFar     = luaConstant("FARTHEST")
	oracleWants   = luaConstant("WANTS")
	oracleLine    = luaConstant("LINE")
	oracleMove    = luaConstant("MOVE")
	oracleSlowest = luaConstant("SLOWEST")
	oraclePace    = luaConstant("PACE")
	oracleRepay   = luaConstant("REPAY")
	oraclePatient = luaConstant("PATIENCE")
	oracleHaste   = luaConstant("HASTE")
	oracleCalm    = luaConstant("CALM")
	oracleYoung   = luaConstant("YOUNG")
	oracleMoving  = luaConstant("MOVING")
	oracleJoining = luaConstant("JOINING")
	oracleTold    = luaConstant("TOLD")
	oracleBound   = luaConstant("BOUND")
	oracleBehind  = luaConstant("BEHIND")
	oracleAsked   = luaConstant("ASKED")
	oracleEnds    = luaConstant("ENDS")
	oracleLook    = luaConstant("LOOK")
	oracleAwait   = luaConstant("AWAIT")
	oracleDenied  = luaConstant("DENIED")
)

const oracleRank = 1 << 40

func luaConstant(name string) int64 {
	m := regexp.MustCompile(`(?m)^local ` + name + ` = (\d+)`).FindStringSubmatch(common)
	if m == nil {
		panic("bug: no script has a constant " + name)
	}
	n, _ := strconv.ParseInt(m[1], 10, 64)
	return n
}

// A push is a message to a session.
type push struct{ session, text string }

// An oracle is one script at work.
type oracle struct {
	*state
	time, now int64
	epoch     string
	gate      int64
	capacity  int64 // as stored when the script began
	last      int64
	change    int64
	fence     bool
	lease     int64 // as stored when the script began
	sharded   bool
	listeners []string // sessions that are subscribed
	pushes    []push
}

// begin is what all scripts begin with: they read the clock, correct it, and look whether the set of permits was deleted.
func begin(before *state, time, expected int64, sharded bool, listeners []string) *oracle {
	o := &oracle{state: before.clone(), time: time, sharded: sharded, listeners: listeners}
	o.epoch, o.gate, o.capacity = o.Meta["epoch"], o.num("gate"), o.num("cap")
	last := o.num("last")
	o.last = last
	o.now = time - o.num("skew")
	o.lease = o.shortest("lease")
	step := stepOf(o.lease)
	if o.now < last-step || last > 0 && expected > 0 && o.now-max(last, expected) > step {
		o.now = max(last, expected-step)
		o.setSkew(time - o.now)
	}
	_, o.fence = o.Meta["fence"]
	o.fence = o.fence || o.epoch == "" && len(o.Backends)+len(o.Quarantine) > 0
	if o.epoch != "" {
		count, there := o.num("count"), int64(len(o.Permits))
		if there == 0 && count > 1 {
			delete(o.Meta, "epoch")
			o.epoch = ""
		} else if there < count {
			o.setNum("count", there)
		}
	}
	return o
}

// shortest is a length of leases as stored: no lease is shorter than 100 ms, or longer than a day.
func (s *state) shortest(field string) int64 {
	if n := s.num(field); n >= oracleShort && n <= 86_400_000 {
		return n
	}
	return oracleShort
}

// stepOf is by how much a clock may be off that was not set: less than the margin of the shortest lease.
func stepOf(lease int64) int64 { return lease * 8 / 100 }

// countLease keeps the shortest lease of all that may be there. One that is shorter counts at once; a longer one when nobody has said
// a shorter for so long that the permits of who might have are over, too.
func (o *oracle) countLease(ttl int64, fresh bool) {
	said := ttl
	if _, ok := o.Meta["leasenext"]; ok {
		said = min(ttl, o.shortest("leasenext"))
	}
	since, err := strconv.ParseInt(o.Meta["leasesince"], 10, 64)
	switch {
	case fresh || ttl < o.lease:
		o.lease, said, since = ttl, ttl, o.now
	case err != nil || since > o.now || since <= o.now-4*86_400_000:
		said, since = ttl, o.now
	case o.now-since >= 2*said:
		o.lease, said, since = max(o.lease, said), ttl, o.now
	}
	o.setNum("lease", o.lease)
	o.setNum("leasenext", said)
	o.setNum("leasesince", since)
}

// end adds up what was changed.
func (o *oracle) end() {
	if o.change != 0 {
		o.setNum("count", o.num("count")+o.change)
	}
}

func (o *oracle) push(session, text string) { o.pushes = append(o.pushes, push{session, text}) }

func (o *oracle) openGate() bool {
	if o.gate <= o.now {
		return true
	}
	early, known := o.gate, o.num("known")
	if _, ok := o.Meta["early"]; ok {
		early = o.num("early")
	}
	if o.now < early || known == 0 || int64(len(o.Sessions))-o.num("news") < known {
		return false
	}
	o.gate = o.now
	o.setNum("gate", o.gate)
	return true
}

// Minima. lacking is what a session's minimum lacks, below zero what it has beyond; 0 and false if it has none.
func (o *oracle) reserving() bool { _, ok := o.Meta["reserve"]; return ok }

func (o *oracle) lacking(session string) (int64, bool) {
	free, ok := o.Reserves["free "+session]
	return free, ok && o.reserving()
}

func (o *oracle) reckon(session string, n int64) {
	if free, ok := o.lacking(session); ok {
		o.Reserves["free "+session] = free - n
		if change := max(0, free-n) - max(0, free); change != 0 {
			o.setNum("reserve", o.num("reserve")+change)
		}
	}
}

// grantable is how many of n permits a session may be granted when so many are free.
func (o *oracle) grantable(n, free int64, session string) int64 {
	n = min(n, free)
	if o.reserving() && n > 0 {
		lacking, _ := o.lacking(session)
		n = min(n, max(0, lacking)+max(0, free-o.num("reserve")))
	}
	return n
}

// Shares.
func (o *oracle) share(sharer string) int64 { return max(0, o.Held[sharer]-o.Debts[sharer]) }

func (o *oracle) place(sharer string, share int64) {
	if share > 0 {
		since := float64(o.now)
		if w := weightOf(sharer); share == 1 && w > 1 {
			length, _ := o.cycle(o.capacity)
			since += float64(w-1) * length
		}
		o.Shares[sharer] = float64(share-1)/float64(weightOf(sharer)) - since/8796093022208
	} else {
		delete(o.Shares, sharer)
	}
}

func (o *oracle) add(counts map[string]int64, name string, n int64) {
	if counts[name] += n; counts[name] <= 0 {
		delete(counts, name)
	}
}

func (o *oracle) drop(id string) bool {
	parted := false
	if o.fence {
		_, parted = o.Quarantine[id]
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
	if !parted {
		o.disown(id)
	}
	return true
}

// disown: a permit counts for its session and its pool no longer.
func (o *oracle) disown(id string) {
	owed := false
	if sharer := sharerOf(id); isShared(id) {
		held := o.Held[sharer] - 1
		o.add(o.Held, sharer, -1)
		if held <= 0 {
			delete(o.Moves, sharer)
		}
		if owed = o.Debts[sharer] > 0; owed {
			o.add(o.Debts, sharer, -1)
			o.keepPromise(sharer)
		} else {
			o.place(sharer, held)
		}
	}
	if !owed {
		o.reckon(sessionOf(id), -1)
	}
}

func (o *oracle) grant(id string, ttl int64) {
	_, held := o.Permits[id]
	o.Permits[id] = o.now + ttl
	if held {
		return
	}
	o.change++
	if sharer := sharerOf(id); isShared(id) {
		o.Held[sharer]++
		o.place(sharer, o.Held[sharer]-o.Debts[sharer])
	}
	o.reckon(sessionOf(id), 1)
}

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
		return ErrGone
	}
	if o.isQuarantined(id) || o.Permits[id] <= o.now {
		return ErrNotHeld
	}
	o.setNum("fence", 1)
	o.cover(id, backend)
	if len(o.Quarantine) > 0 {
		o.askEnd(session)
	}
	return nil
}

func (o *oracle) free(capacity int64) int64 { return capacity - int64(len(o.Permits)) }

// pump grants to the head of the queue for as long as it fits.
func (o *oracle) pump(capacity int64, own string) (granted []string) {
	for _, head := range o.line() {
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
				if sharer := sharerOf(id); isShared(id) && o.Held[sharer] == 0 {
					o.Moves[sharer] = o.now + oracleMoving
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

func (o *oracle) seq() int64 {
	o.setNum("seq", o.num("seq")+1)
	return o.num("seq")
}

func (o *oracle) effectiveCapacity() int64 {
	capacity := int64(0)
	if limit, ok := o.Meta["limit"]; ok {
		capacity, _ = strconv.ParseInt(limit, 10, 64)
	} else {
		if len(o.Capacities) > 0 {
			capacity = slices.Min(slices.Collect(maps.Values(o.Capacities)))
		}
		if len(o.Capacities) < len(o.Sessions) {
			capacity = min(capacity, o.capacity)
		}
	}
	o.setNum("cap", capacity)
	return capacity
}

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

func (o *oracle) forget(ended ...string) {
	maps.DeleteFunc(o.Promises, func(name string, _ int64) bool { return slices.Contains(ended, sessionOf(strings.Fields(name)[1])) })
	maps.DeleteFunc(o.Moves, func(sharer string, _ int64) bool { return slices.Contains(ended, sessionOf(sharer)) })
	maps.DeleteFunc(o.Recalls, func(field string, _ int64) bool { return slices.Contains(ended, sessionOf(field[1:])) })
	for _, counts := range []map[string]int64{o.Held, o.Debts} {
		for sharer := range counts {
			if slices.Contains(ended, sessionOf(sharer)) {
				delete(counts, sharer)
				delete(o.Shares, sharer)
			}
		}
	}
	if !o.reserving() {
		return
	}
	for _, session := range ended {
		delete(o.Reserves, "min "+session)
		delete(o.Reserves, "free "+session)
	}
	o.sumReserves()
}

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

func (o *oracle) renew(n Renew) (Renewed, error) {
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
			return Renewed{}, RefusedMin{taken, room}
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

	told, owing, redebted := make([]Tally, 0), int64(0), false
	for _, s := range n.Sharers {
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

	if lost && o.gate > o.now && n.Roster > o.num("known") {
		o.setNum("known", n.Roster)
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
	return Renewed{Now: o.now, Epoch: o.epoch, Capacity: capacity, Waiting: int64(len(o.Queue)), Sharded: o.sharded, Gate: o.gate,
		Missing: missing, Limit: o.num("limit"), Recalls: told, Min: minimum, Roster: int64(len(o.Sessions)),
		Quarantine: quarantine, Listeners: listeners}, nil
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
	if n > 0 {
		o.setNum("limit", n)
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

// sortPushes makes lists of pushes comparable: to whom first is of no importance, and who does not listen does not hear.
func sortPushes(list []push, listeners []string) []push {
	out := slices.DeleteFunc(slices.Clone(list), func(p push) bool { return !slices.Contains(listeners, p.session) })
	slices.SortStableFunc(out, func(a, b push) int { return cmp.Compare(a.session, b.session) })
	return out
}
