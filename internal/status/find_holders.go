package status

import (
	"cmp"
	"fmt"
	"slices"
)

// holders finds processes that keep what others wait for.
func (x *diagnosis) holders() {
	var kept []Process
	for _, p := range x.Processes {
		if p.InUse > 0 && p.OldestUse >= longUse || x.unpooled(p) > 0 {
			kept = append(kept, p)
		}
	}
	slices.SortStableFunc(kept, func(a, b Process) int {
		return cmp.Or(cmp.Compare(b.Permits, a.Permits), cmp.Compare(b.OldestUse, a.OldestUse))
	})
	said := 0
	for _, p := range kept {
		if x.keeps(p) {
			said++
		}
		if said == 3 {
			break
		}
	}
	if said == 0 {
		x.greedy()
	}
	if x.Quarantined > 0 {
		x.add(Warning, "quarantine", fmt.Sprintf("%s %s in quarantine: the leases have ended, but "+
			"the Postgres backends may still be there. They count until those are seen gone.",
			Count(x.Quarantined, "permit"), Verb(x.Quarantined, "is", "are")), x.Command("events"),
			"Shows whose they were: end those processes, or their backends with "+
				"pg_terminate_backend.")
	}
	if x.Others > 0 {
		x.add(Info, "other-clients", fmt.Sprintf("%s %s held by clients that are no sessions, such "+
			"as PassBuddy for Node: they cannot be recalled.", Count(x.Others, "permit"),
			Verb(x.Others, "is", "are")), "", "")
	}
}

// unpooled is how many permits of a process no pool accounts for: Acquire, `passbuddy run`.
func (x *diagnosis) unpooled(p Process) int {
	pooled := 0
	for _, pool := range p.Pools {
		pooled += max(pool.Permits, pool.InUse+pool.Idle+pool.Opening+pool.Closing)
	}
	return max(0, p.Permits-pooled)
}

// othersWait reports whether another process than p waits, and for how long the first caller has.
func (x *diagnosis) othersWait(p Process) (n int, oldest float64) {
	for _, other := range x.Processes {
		if other.Session != p.Session && (other.Waiting > 0 || other.Queued > 0) {
			n++
			oldest = max(oldest, other.OldestWait)
		}
	}
	return n, oldest
}

// keeps says that p keeps permits, if that hurts anybody.
func (x *diagnosis) keeps(p Process) bool {
	n, oldest := x.othersWait(p)
	long := p.InUse > 0 && p.OldestUse >= longUse
	// Rotation rounds a share up for a time, so one more than due is no sign.
	beyond := float64(p.Permits) >= p.Due+1
	held := fmt.Sprintf("%s holds %d of %d permits, and is due %.1f", p.Title(), p.Permits,
		x.Capacity.InForce, p.Due)
	evict, force := x.Command("evict", p.Session), x.Command("evict", p.Session, "--force")
	effect := fmt.Sprintf("Recalls its %s: connections close as their callers return them. With "+
		"--force, what is left after 10s is cut, and its transactions roll back.",
		Count(p.Permits, "permit"))
	switch {
	case long && n > 0 && beyond && oldest >= longWait/2:
		x.add(Critical, "stuck-holder", fmt.Sprintf("%s. %s in use, one for %s already, while %s "+
			"%s, up to %s.", held, Count(p.InUse, "connection"), Span(p.OldestUse),
			Count(n, "process"), Verb(n, "waits", "wait"), Span(oldest)), force, effect)
	case long && n > 0 && x.told("held-connections"):
		return false
	case long && n > 0:
		x.add(Warning, "long-use", fmt.Sprintf("%s has had a connection in use for %s, while %s %s. "+
			"%s", p.Title(), Span(p.OldestUse), Count(n, "process"), Verb(n, "waits", "wait"),
			forEver(p)), evict, effect)
	case long && p.OldestUse >= forgotten:
		x.add(Info, "long-use", fmt.Sprintf("%s has had a connection in use for %s: no recall can "+
			"take that back. %s", p.Title(), Span(p.OldestUse), forEver(p)), "", "")
	case x.unpooled(p) > 0 && n > 0 && beyond && oldest >= longWait:
		x.add(Warning, "unpooled", fmt.Sprintf("%s, while %s %s, up to %s. No pool holds %d of "+
			"them (Acquire, passbuddy run): no recall can take those back.", held,
			Count(n, "process"), Verb(n, "waits", "wait"), Span(oldest), x.unpooled(p)),
			force, effect)
	default:
		return false
	}
	return true
}

// forEver says what keeps a connection for ever.
func forEver(p Process) string {
	if p.Hijacked > 0 {
		return fmt.Sprintf("%s %s hijacked, and LISTEN keeps one as long.",
			Count(p.Hijacked, "connection"), Verb(p.Hijacked, "is", "are"))
	}
	return "LISTEN and Hijack keep one for ever."
}

// greedy finds a process that holds far more than it is due while others wait for long. Recalls
// take some seconds, so this is worth a look, and no more.
func (x *diagnosis) greedy() {
	for _, p := range x.Processes {
		n, oldest := x.othersWait(p)
		if n == 0 || oldest < longWait || float64(p.Permits) < 2*p.Due+1 {
			continue
		}
		x.add(Warning, "greedy-holder", fmt.Sprintf("%s holds %d of %d permits, and is due %.1f, "+
			"while %s %s, up to %s.", p.Title(), p.Permits, x.Capacity.InForce, p.Due,
			Count(n, "process"), Verb(n, "waits", "wait"), Span(oldest)),
			x.Command("evict", p.Session), fmt.Sprintf("Recalls its %s: connections close as their "+
				"callers return them.", Count(p.Permits, "permit")))
		return
	}
}

// waits finds callers that wait for long, where nothing else says why.
func (x *diagnosis) waits() {
	if x.RecentTimeouts > 0 {
		worst := slices.MaxFunc(x.Processes, func(a, b Process) int {
			return cmp.Compare(a.RecentTimeouts, b.RecentTimeouts)
		})
		x.add(Critical, "timeouts", fmt.Sprintf("%s timed out in the last %s, %d of them in %s.",
			Count(int(x.RecentTimeouts), "caller"), Span(x.RecentSeconds), worst.RecentTimeouts,
			worst.Title()), "", "")
	}
	if x.Callers == 0 || x.OldestWaitSeconds < longWait || x.Pause != nil {
		return
	}
	who := fmt.Sprintf("%s, the first for %s already", waiting(x.Callers), Span(x.OldestWaitSeconds))
	opening := 0
	for _, p := range x.Processes {
		opening += p.Opening
	}
	switch {
	case x.Held < x.Capacity.InForce && opening > 0 && x.GrantsPaused == 0:
		x.add(Warning, "cannot-open", fmt.Sprintf("%s, although only %d of %d permits are held: %s "+
			"%s being opened, which Postgres is slow to accept, or refuses.", who, x.Held,
			x.Capacity.InForce, Count(opening, "connection"), Verb(opening, "is", "are")),
			x.Command("doctor", "--postgres", "URL"), "Shows what Postgres allows and who has it.")
	case x.Held >= x.Capacity.InForce && !x.has(Critical):
		text := fmt.Sprintf("%s: all %d permits are held, and %s in use.", who,
			x.Capacity.InForce, Count(x.InUse, "connection"))
		if x.Timeouts > 0 {
			text += fmt.Sprintf(" %s timed out since the processes started.",
				Count(int(x.Timeouts), "caller"))
		}
		x.add(Critical, "saturated", text, x.Command("capacity", "--from-postgres"),
			"Proposes a capacity that Postgres has room for. Faster queries help as much.")
	}
}

// deploy finds that many processes have joined while those of before are still there.
func (x *diagnosis) deploy() {
	const deployed = 300.0
	joined := make(map[string]float64)
	for _, e := range x.Events {
		if ago := x.since(e.At); e.Kind == "joined" && ago < deployed {
			joined[e.Session] = ago
		}
	}
	var young, old []Process
	first := 0.0
	for _, p := range x.Processes {
		ago, known := joined[p.Session]
		if up := x.since(p.Started); !known && !p.Started.IsZero() && up < deployed {
			ago, known = up, true // its event has left the log
		}
		if !known {
			old = append(old, p)
			continue
		}
		young = append(young, p)
		first = max(first, ago)
	}
	if len(young) < 2 || len(old) < 2 || 2*len(young) < len(old) || x.Capacity.InForce == 0 {
		return
	}
	severity := Info
	if x.wanted() {
		severity = Warning
	}
	whole := float64(x.Capacity.InForce)
	text := fmt.Sprintf("A deploy? %s joined within %s, and %s from before %s still there: each "+
		"process has %.1f of the %d permits instead of %.1f.", titles(young), Span(first),
		titles(old), Verb(len(old), "is", "are"), whole/float64(len(young)+len(old)),
		x.Capacity.InForce, whole/float64(max(len(old), len(young))))
	if room := x.room(); room > x.Capacity.InForce {
		n := min(room, x.Capacity.InForce*(len(young)+len(old))/max(len(old), len(young)))
		x.add(severity, "deploy", text, x.Command("capacity", fmt.Sprint(n)), fmt.Sprintf(
			"Allows %d for the time of the deploy: Postgres has room for %d. Afterwards: "+
				"`passbuddy capacity auto`.", n, room))
		return
	}
	x.add(severity, "deploy", text, x.Command("events", "--follow"),
		"Shows when the old ones leave, which gives the others their permits.")
}
