package screen

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/passbuddy/passbuddy/internal/status"
)

// isItUs answers whether the fleet has Postgres's connections, or somebody else.
func isItUs(d status.Document) (lines []Line) {
	v := d.Postgres
	if v == nil {
		why := "Postgres was not asked: see --postgres."
		if d.PostgresError != "" {
			why = "Postgres cannot be asked: see below."
		}
		if d.RedisError != "" {
			return []Line{{why, Plain}}
		}
		return []Line{{fmt.Sprintf("We hold %s. %s", ofCapacity(d), why), Plain}}
	}
	usable := v.Usable()
	room := max(0, usable-v.Others)
	sum := fmt.Sprintf("%d ours, %d others', %d free of %d (%d less %d reserved)", v.Ours,
		v.Others, v.Free(), usable, v.MaxConnections, v.Reserved)
	switch capacity := d.Capacity.InForce; {
	case d.RedisError != "":
		lines = append(lines, Line{sum, Plain})
	case capacity > usable:
		lines = append(lines, Line{fmt.Sprintf("Yes: the capacity of %d is beyond Postgres's %d.",
			capacity, usable), Bad}, Line{sum, Plain})
	case v.Ours > capacity+2 && capacity > 0:
		lines = append(lines, Line{fmt.Sprintf("Yes: our %d backends are more than the capacity.",
			v.Ours), Bad}, Line{sum, Plain})
	case room < capacity && v.Free() == 0:
		lines = append(lines, Line{fmt.Sprintf("No: others leave room for %d of our %d.", room,
			capacity), Bad}, Line{sum, Plain})
	case room < capacity:
		lines = append(lines, Line{fmt.Sprintf("Not yet: others leave room for %d of our %d.", room,
			capacity), Look}, Line{sum, Plain})
	default:
		lines = append(lines, Line{"No: " + sum, Plain})
	}
	var names []string
	for _, a := range byApplication(v) {
		names = append(names, fmt.Sprintf("%d %s", a.n, a.name))
	}
	if len(names) > 0 {
		lines = append(lines, Line{"Others: " + strings.Join(names, ", "), Plain})
	}
	return lines
}

// ofCapacity says how many permits are held, and of how many.
func ofCapacity(d status.Document) string {
	if d.Capacity.InForce == 0 {
		return status.Count(d.Held, "permit")
	}
	return fmt.Sprintf("%d of %d permits", d.Held, d.Capacity.InForce)
}

type application struct {
	name string
	n    int
}

// byApplication are the backends that are not ours, by name, user and address.
func byApplication(v *status.View) (list []application) {
	where := make(map[string]int)
	for _, g := range v.Backends {
		if g.Ours {
			continue
		}
		name := fmt.Sprintf("%s (%s@%s)", cmp.Or(g.Application, "unnamed"),
			cmp.Or(g.User, "?"), cmp.Or(g.Address, "?"))
		at, known := where[name]
		if !known {
			at = len(list)
			where[name] = at
			list = append(list, application{name: Clean(name)})
		}
		list[at].n += g.Backends
	}
	slices.SortStableFunc(list, func(a, b application) int { return cmp.Compare(b.n, a.n) })
	return list
}

// whyCapacity answers who has made the capacity what it is.
func whyCapacity(d status.Document) (lines []Line) {
	c := d.Capacity
	declared := make([]string, len(c.Declared))
	for i, one := range c.Declared {
		declared[i] = fmt.Sprintf("%d by %s", one.Capacity, status.Count(one.Sessions, "session"))
	}
	list := strings.Join(declared, ", ")
	switch {
	case c.Operator > 0:
		when := ""
		if c.SetAt != nil {
			when = " " + status.Span(d.At.Sub(*c.SetAt).Seconds()) + " ago"
		}
		lines = append(lines, Line{fmt.Sprintf("%d: set by %s%s. Declared: %s.", c.InForce,
			Clean(cmp.Or(c.SetBy, "an operator")), when, cmp.Or(list, "nothing")), Look})
	case len(declared) == 0:
		lines = append(lines, Line{"none: no session declares one, no operator has set one.", Plain})
	case c.Mismatch:
		lines = append(lines, Line{fmt.Sprintf("%d: the smallest wins. Declared: %s.", c.InForce, list),
			Bad})
	case c.Declared[0].Sessions == 1:
		lines = append(lines, Line{fmt.Sprintf("%d: declared by the only session.", c.InForce), Plain})
	default:
		lines = append(lines, Line{fmt.Sprintf("%d: declared by all %s.", c.InForce,
			status.Count(c.Declared[0].Sessions, "session")), Plain})
	}
	if p := d.Pause; p != nil {
		what := "Paused"
		if p.Drain {
			what = "Drained"
		}
		until := "until somebody resumes"
		if p.Until != nil {
			until = "for " + status.Span(p.Until.Sub(d.At).Seconds()) + " more"
		}
		lines = append(lines, Line{fmt.Sprintf("%s by %s %s ago, %s. %s", what,
			Clean(cmp.Or(p.By, "an operator")), status.Span(d.At.Sub(p.Since).Seconds()), until,
			Clean(p.Reason)), Bad})
	}
	if d.GrantsPaused > 0 {
		lines = append(lines, Line{fmt.Sprintf("Redis lost its state: nothing is granted for %s more.",
			status.Span(d.GrantsPaused)), Bad})
	}
	return lines
}

// whoHolds answers how many permits are held, and what for.
func whoHolds(d status.Document) Line {
	text := fmt.Sprintf("%s: %d connections in use, %d idle", ofCapacity(d), d.InUse, d.Idle)
	style := Plain
	if d.Quarantined > 0 {
		text += fmt.Sprintf(", %d in quarantine", d.Quarantined)
		style = Look
	}
	if d.Others > 0 {
		text += fmt.Sprintf(", %d by other clients", d.Others)
	}
	return Line{text, style}
}

// whoWaits answers how many callers wait, since when, and how many gave up.
func whoWaits(d status.Document) Line {
	timeouts := "no timeouts"
	switch {
	case d.RecentSeconds > 0:
		timeouts = fmt.Sprintf("%d timeouts in the last %s, %d since the start", d.RecentTimeouts,
			status.Span(d.RecentSeconds), d.Timeouts)
	case d.Timeouts > 0:
		timeouts = fmt.Sprintf("%d timeouts since the processes started", d.Timeouts)
	}
	if d.Callers == 0 && d.Waiting == 0 {
		return Line{"Nobody; " + timeouts, Plain}
	}
	processes := 0
	for _, p := range d.Processes {
		if p.Waiting > 0 || p.Queued > 0 {
			processes++
		}
	}
	style := Plain
	switch {
	case d.OldestWaitSeconds >= 2 || d.RecentTimeouts > 0:
		style = Bad
	case d.OldestWaitSeconds >= 0.25:
		style = Look
	}
	return Line{fmt.Sprintf("%s in %s, oldest %s; %s", status.Count(d.Callers, "caller"),
		status.Count(processes, "process"), status.Span(d.OldestWaitSeconds), timeouts), style}
}
