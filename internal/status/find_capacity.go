package status

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
)

// paused finds what keeps grants back.
func (x *diagnosis) paused() {
	if x.GrantsPaused > 0 {
		x.add(Critical, "state-lost", fmt.Sprintf("Redis lost its state. Nothing new is granted for "+
			"%s more: until then sessions tell it what they hold.", Span(x.GrantsPaused)),
			x.Command("doctor"), "Shows whether Redis persists its state, and may evict keys.")
	}
	p := x.Pause
	if p == nil {
		return
	}
	what, code := "paused", "paused"
	if p.Drain {
		what, code = "drained", "drained"
		if x.Held > 0 {
			what = "being drained"
		}
	}
	text := fmt.Sprintf("The fleet is %s, by %s %s ago", what, cmp.Or(p.By, "an operator"),
		Span(x.since(p.Since)))
	if p.Until != nil {
		text += fmt.Sprintf(", for %s more", Span(p.Until.Sub(x.At).Seconds()))
	} else {
		text += ", until somebody resumes it"
	}
	if p.Reason != "" {
		text += ": " + p.Reason
	}
	text = end(text)
	if p.Drain && x.Held > 0 {
		text += fmt.Sprintf(" %s %s still held%s.", Count(x.Held, "permit"),
			Verb(x.Held, "is", "are"), x.keepers())
	}
	severity := Warning
	if x.wanted() {
		severity = Critical
	}
	effect := "Grants again at once."
	if x.Callers > 0 {
		effect = fmt.Sprintf("Grants again at once: %s.", waiting(x.Callers))
	}
	x.add(severity, code, text, x.Command("resume"), effect)
}

// keepers are those that still hold permits during a drain.
func (x *diagnosis) keepers() string {
	var holders []Process
	for _, p := range x.Processes {
		if p.Permits > 0 {
			holders = append(holders, p)
		}
	}
	if len(holders) == 0 {
		return ""
	}
	slices.SortStableFunc(holders, func(a, b Process) int { return cmp.Compare(b.Permits, a.Permits) })
	return " by " + titles(holders)
}

func waiting(callers int) string {
	return Count(callers, "caller") + " " + Verb(callers, "waits", "wait")
}

// capacity explains the capacity in force, where that is odd.
func (x *diagnosis) capacity() {
	c := x.Capacity
	usual := x.usualCapacity()
	switch {
	case c.Operator > 0:
		x.operatorCapacity(usual)
	case c.Mismatch:
		smallest := c.Declared[0].Capacity
		var who []Process
		for _, p := range x.Processes {
			if p.Capacity == smallest {
				who = append(who, p)
			}
		}
		others := 0
		for _, other := range c.Declared[1:] {
			others += other.Sessions
		}
		rest := strconv.Itoa(c.Declared[1].Capacity)
		if last := c.Declared[len(c.Declared)-1].Capacity; last != c.Declared[1].Capacity {
			rest += " to " + strconv.Itoa(last)
		}
		severity := Warning
		if x.wanted() && x.Held >= c.InForce {
			severity = x.severe(Warning)
		}
		x.add(severity, "mismatch", fmt.Sprintf("%s %s a capacity of %d, and %s %s %s: the "+
			"smallest is in force.", titles(who), Verb(len(who), "declares", "declare"), smallest,
			Count(others, "other process"), Verb(others, "declares", "declare"), rest),
			x.Command("capacity", strconv.Itoa(x.fitting(usual))), fmt.Sprintf("Puts %d in force at "+
				"once, whatever sessions declare, until `passbuddy capacity auto`. Then give all the "+
				"same Capacity.", x.fitting(usual)))
	case c.InForce == 0 && len(x.Processes) > 0 && len(c.Declared) == 0:
		x.add(Warning, "no-capacity", "No session declares a capacity, and no operator has set one.",
			x.Command("capacity", "--from-postgres"), "Proposes one that Postgres has room for.")
	}
}

func (x *diagnosis) operatorCapacity(usual int) {
	c := x.Capacity
	when := ""
	if c.SetAt != nil {
		when = fmt.Sprintf(" %s ago", Span(x.since(*c.SetAt)))
	}
	text := fmt.Sprintf("%s has set the capacity to %d%s", cmp.Or(c.SetBy, "An operator"),
		c.Operator, when)
	switch {
	case usual == 0 || usual == c.Operator && !c.Mismatch:
		x.add(Info, "operator-capacity", text+".", x.Command("capacity", "auto"),
			"Goes back to what sessions declare.")
		return
	case c.Mismatch:
		text += fmt.Sprintf("; sessions declare %d to %d.", c.Declared[0].Capacity,
			c.Declared[len(c.Declared)-1].Capacity)
	default:
		text += fmt.Sprintf("; sessions declare %d.", usual)
	}
	severity := Info
	if c.Operator < c.declaredLeast() && x.wanted() && x.Held >= c.Operator {
		severity = x.severe(Warning)
	}
	x.add(severity, "operator-capacity", text, x.Command("capacity", "auto"), fmt.Sprintf(
		"Goes back to the smallest that sessions declare: %d.", c.declaredLeast()))
}

func (c Capacity) declaredLeast() int {
	if len(c.Declared) == 0 {
		return 0
	}
	return c.Declared[0].Capacity
}

// usualCapacity is declared by most sessions; of equals it is the larger.
func (x *diagnosis) usualCapacity() int {
	best := Declared{}
	for _, d := range x.Capacity.Declared {
		if d.Sessions >= best.Sessions {
			best = d
		}
	}
	return best.Capacity
}

// fitting is a capacity that Postgres has room for, if that is known.
func (x *diagnosis) fitting(n int) int {
	if room := x.room(); room > 0 {
		return min(n, room)
	}
	return n
}
