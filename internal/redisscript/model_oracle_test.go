package redisscript

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The oracle says in plain Go what each script must answer, store and push, given what is stored.
// It remembers nothing, so a fault cannot hide in a state to which both drift. Whether what is
// stored makes sense, model_specification_test.go says. Names are those of the Lua functions.

// The scripts' constants are theirs to choose, so the oracle reads them.
var (
	oracleShort      = luaConstant("SHORTEST")
	oracleLevels     = luaConstant("LEVELS")
	oraclePromise    = luaConstant("PROMISE")
	oracleFar        = luaConstant("FARTHEST")
	oracleWants      = luaConstant("WANTS")
	oracleLine       = luaConstant("LINE")
	oracleMove       = luaConstant("MOVE")
	oracleSlowest    = luaConstant("SLOWEST")
	oraclePace       = luaConstant("PACE")
	oracleRepay      = luaConstant("REPAY")
	oraclePatient    = luaConstant("PATIENCE")
	oracleHaste      = luaConstant("HASTE")
	oracleCalm       = luaConstant("CALM")
	oracleYoung      = luaConstant("YOUNG")
	oracleMoving     = luaConstant("MOVING")
	oracleJoining    = luaConstant("JOINING")
	oracleTold       = luaConstant("TOLD")
	oracleBound      = luaConstant("BOUND")
	oracleBehind     = luaConstant("BEHIND")
	oracleAsked      = luaConstant("ASKED")
	oracleEnds       = luaConstant("ENDS")
	oracleLook       = luaConstant("LOOK")
	oracleAwait      = luaConstant("AWAIT")
	oracleUnanswered = luaConstant("UNANSWERED")
	oracleDenied     = luaConstant("DENIED")
)

const (
	oracleRank = 1 << 40
	oracleDay  = 86_400_000
)

func luaConstant(name string) int64 {
	m := regexp.MustCompile(`(?m)^local ` + name + ` = (\d+)`).FindStringSubmatch(exchangeParts)
	if m == nil {
		panic("bug: no script has a constant " + name)
	}
	n, _ := strconv.ParseInt(m[1], 10, 64)
	return n
}

// A push is a message to a session.
type push struct{ session, text string }

// An oracle is one run of a script.
type oracle struct {
	*state
	time, now   int64
	epoch       string
	pausedUntil int64
	capacity    int64 // as stored when the script began
	last        int64
	change      int64
	fence       bool
	lease       int64 // as stored when the script began
	sharded     bool
	listeners   []string // sessions that are subscribed
	pushes      []push
	// anyOrder: recalls were pushed in the order in which Redis lists the fields of a hash.
	anyOrder bool
}

// begin does what every script does first. It reads and corrects the clock, and notices if the set
// of permits was deleted.
func begin(before *state, time, expected int64, sharded bool, listeners []string) *oracle {
	o := &oracle{state: before.clone(), time: time, sharded: sharded, listeners: listeners}
	o.epoch, o.pausedUntil, o.capacity = o.Meta["epoch"], o.num("gate"), o.num("cap")
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

// end stores by how much the number of permits has changed.
func (o *oracle) end() {
	if o.change != 0 {
		o.setNum("count", o.num("count")+o.change)
	}
}

func (o *oracle) push(session, text string) { o.pushes = append(o.pushes, push{session, text}) }

// shortest reads the length of a lease: at least 100 ms, and at most a day.
func (s *state) shortest(field string) int64 {
	if n := s.num(field); n >= oracleShort && n <= oracleDay {
		return n
	}
	return oracleShort
}

// stepOf returns by how much a clock can be off that nobody has set. It is less than the margin of
// the shortest lease.
func stepOf(lease int64) int64 { return lease * 8 / 100 }

// keepShortestLease keeps the shortest lease that any permit may have. A shorter lease counts at
// once. A longer one counts when nobody has named a shorter one for two leases: by then the permits
// of a session that did have expired.
func (o *oracle) keepShortestLease(ttl int64, fresh bool) {
	said := ttl
	if _, ok := o.Meta["leasenext"]; ok {
		said = min(ttl, o.shortest("leasenext"))
	}
	since, err := strconv.ParseInt(o.Meta["leasesince"], 10, 64)
	switch {
	case fresh || ttl < o.lease:
		o.lease, said, since = ttl, ttl, o.now
	case err != nil || since > o.now || since <= o.now-4*oracleDay:
		said, since = ttl, o.now
	case o.now-since >= 2*said:
		o.lease, said, since = max(o.lease, said), ttl, o.now
	}
	o.setNum("lease", o.lease)
	o.setNum("leasenext", said)
	o.setNum("leasesince", since)
}

// mayGrant reports whether grants are not paused, by an operator or after a loss. It ends a pause of
// the latter kind early once as many sessions are back as there were before the loss. A session is
// back when it knows the new state, which its info tells, and did not join it.
func (o *oracle) mayGrant() bool {
	if o.pausedByOperator(o.now) {
		return false
	}
	if o.pausedUntil <= o.now {
		return true
	}
	early, known := o.pausedUntil, o.num("known")
	if _, ok := o.Meta["early"]; ok {
		early = o.num("early")
	}
	if o.now < early || known == 0 || o.back() < known {
		return false
	}
	o.pausedUntil = o.now
	o.setNum("gate", o.pausedUntil)
	return true
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
		switch {
		case len(o.Capacities) >= len(o.Sessions):
		case len(o.Capacities) == 0:
			capacity = o.capacity
		default:
			capacity = min(capacity, o.capacity)
		}
	}
	o.setNum("cap", capacity)
	return capacity
}

// forgetSessions forgets what is counted about sessions that ended.
func (o *oracle) forgetSessions(ended ...string) {
	hasEnded := func(id string) bool { return slices.Contains(ended, sessionOf(id)) }
	maps.DeleteFunc(o.Promises, func(name string, _ int64) bool {
		return hasEnded(strings.Fields(name)[1])
	})
	maps.DeleteFunc(o.Moves, func(pool string, _ int64) bool { return hasEnded(pool) })
	maps.DeleteFunc(o.Recalls, func(field string, _ int64) bool { return hasEnded(field[1:]) })
	for _, counts := range []map[string]int64{o.Held, o.Debts} {
		for pool := range counts {
			if hasEnded(pool) {
				delete(counts, pool)
				delete(o.Levels, pool)
			}
		}
	}
	if !o.anyMinimum() {
		return
	}
	for _, session := range ended {
		delete(o.Reserves, "min "+session)
		delete(o.Reserves, "free "+session)
	}
	o.sumReserves()
}

// removeSession takes a session out of those that live.
func (o *oracle) removeSession(session string) {
	delete(o.Sessions, session)
	delete(o.Capacities, session)
	delete(o.Info, session)
}

// sortPushes makes lists of pushes comparable. The order among sessions does not matter, and a
// session that is not subscribed hears nothing. anyOrder: nor does that of one session's pushes.
func sortPushes(list []push, listeners []string, anyOrder bool) []push {
	out := slices.DeleteFunc(slices.Clone(list), func(p push) bool {
		return !slices.Contains(listeners, p.session)
	})
	slices.SortStableFunc(out, func(a, b push) int {
		if c := cmp.Compare(a.session, b.session); c != 0 || !anyOrder {
			return c
		}
		return cmp.Compare(a.text, b.text)
	})
	return out
}
