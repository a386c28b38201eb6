package status

import (
	"cmp"
	"fmt"
	"slices"
)

// outFor is how long callers of a process wait, and how long all of its connections are in use,
// before that is worth a word. It is the session's own bound: see engine.
const outFor = 10.0

// held finds connections that stay out of their pools while callers wait: so many that the fleet
// starves, or all that a process has in use.
func (x *diagnosis) held() {
	out, hijacked, oldest := 0, 0, 0.0
	var holders []Process
	for _, p := range x.Processes {
		n := staysOut(p)
		if n == 0 {
			continue
		}
		holders = append(holders, p)
		out, hijacked = out+n, hijacked+p.Hijacked
		oldest = max(oldest, p.OldestUse)
	}
	if 2*out >= x.Capacity.InForce && out > 0 && x.suffering() && x.Pause == nil {
		slices.SortStableFunc(holders, func(a, b Process) int {
			return cmp.Compare(staysOut(b), staysOut(a))
		})
		where := titles(holders)
		if most := holders[0]; len(holders) > 3 {
			where = fmt.Sprintf("%s, %d of them in %s", Count(len(holders), "process"), staysOut(most),
				most.Title())
		}
		x.add(Critical, "held-connections", fmt.Sprintf("%d of %d permits are held by connections "+
			"that stay out, in %s: %d hijacked, %d in use for over a minute, the oldest for %s. No "+
			"recall takes those back, and %s: docs/HELD-CONNECTIONS.md.", out, x.Capacity.InForce,
			where, hijacked, max(0, out-hijacked), Span(oldest), waiting(x.Callers)), "", "")
	}
	said := 0
	for _, p := range x.Processes {
		if !nothingReturned(p) || said == 3 {
			continue
		}
		said++
		x.add(Warning, "nothing-returned", fmt.Sprintf("Callers of %s wait, the first for %s, and "+
			"%s in use there %s back meanwhile. Either their work takes as long, or callers hold "+
			"one connection while they ask for another and wait for each other: "+
			"docs/HELD-CONNECTIONS.md.", p.Title(), Span(p.OldestWait),
			Count(p.InUse, "connection"), Verb(p.InUse, "has not come", "have not come")), "", "")
	}
}

// staysOut is how many connections of a process are hijacked, or in use for long. Those that are
// both count once.
func staysOut(p Process) (n int) {
	for _, pool := range p.Pools {
		n += max(pool.Hijacked, pool.LongUse)
	}
	return n
}

// nothingReturned reports whether callers of p wait, and none of its connections in use came back
// meanwhile. Hijacked ones do not count: nobody waits for those.
func nothingReturned(p Process) bool {
	for _, pool := range p.Pools {
		if pool.InUse > 0 && pool.NewestUse < outFor {
			return false
		}
	}
	return p.OldestWait >= outFor && p.InUse > p.Hijacked && p.Opening == 0
}
