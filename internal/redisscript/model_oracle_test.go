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
// own, so a fault cannot hide in a state that both drift to; that what is stored makes sense is for model_specification_test.go to say.

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

// sortPushes makes lists of pushes comparable: to whom first is of no importance, and who does not listen does not hear.
func sortPushes(list []push, listeners []string) []push {
	out := slices.DeleteFunc(slices.Clone(list), func(p push) bool { return !slices.Contains(listeners, p.session) })
	slices.SortStableFunc(out, func(a, b push) int { return cmp.Compare(a.session, b.session) })
	return out
}
