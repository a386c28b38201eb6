package status

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/passbuddy/passbuddy/internal/pgview"
)

// postgres finds that Postgres has not the room that the capacity counts on, and who has it.
func (x *diagnosis) postgres() {
	if x.PostgresError != "" {
		severity, code := Warning, "postgres"
		if strings.Contains(x.PostgresError, pgview.ErrFull.Error()) {
			severity, code = Critical, "postgres-full"
		}
		x.add(severity, code, "Postgres cannot be asked: "+end(x.PostgresError), "", "")
	}
	v := x.Postgres
	if v == nil {
		return
	}
	x.roomFor(v)
	x.limits(v)
	x.idleTransactions(v)
	if v.Hidden > 0 {
		x.add(Info, "hidden-backends", fmt.Sprintf("%s of Postgres %s neither state nor address to "+
			"this role.", Count(v.Hidden, "backend"), Verb(v.Hidden, "shows", "show")),
			`psql -c "grant pg_read_all_stats to ROLE"`, "Lets the role see those of all others.")
	}
	if v.CheckInterval == 0 {
		x.add(Info, "check-interval", "client_connection_check_interval is 0: a backend whose client "+
			"is gone runs its query to the end, and keeps its connection until then.",
			`psql -c "alter system set client_connection_check_interval = '2s'" -c "select pg_reload_conf()"`,
			"Ends such queries within 2s.")
	}
}

// An application is a client that is not ours, by name.
type application struct {
	name, user, address string
	n, idle             int
	where               string // SQL that finds it
}

// strangers are those that are not ours, the largest first.
func strangers(v *View) []application {
	sums := make(map[[2]string]*application)
	addresses := make(map[[2]string]map[string]bool)
	var list []*application
	for _, g := range v.Backends {
		if g.Ours {
			continue
		}
		key := [2]string{g.Application, g.User}
		a := sums[key]
		if a == nil {
			a = &application{name: g.Application, user: g.User, address: g.Address}
			a.where = fmt.Sprintf("application_name = %s and usename = %s", literal(g.Application),
				literal(g.User))
			sums[key], addresses[key] = a, make(map[string]bool)
			list = append(list, a)
		}
		addresses[key][g.Address] = true
		if len(addresses[key]) > 1 {
			a.address = fmt.Sprintf("%d addresses", len(addresses[key]))
		}
		a.n += g.Backends
		if g.State == "idle" {
			a.idle += g.Backends
		}
	}
	slices.SortStableFunc(list, func(a, b *application) int { return cmp.Compare(b.n, a.n) })
	out := make([]application, len(list))
	for i, a := range list {
		out[i] = *a
	}
	return out
}

func (a application) String() string {
	name := cmp.Or(a.name, "a client without application_name")
	who := cmp.Or(a.user, "unknown user")
	if a.address != "" {
		who += " from " + a.address
	}
	return fmt.Sprintf("%s (%s)", name, who)
}

func (x *diagnosis) roomFor(v *View) {
	usable, capacity, room := v.Usable(), x.Capacity.InForce, x.room()
	if x.RedisError != "" {
		if v.Free() == 0 {
			x.add(Critical, "postgres-full", fmt.Sprintf("Postgres has no connection left of the %d "+
				"that ordinary roles can have.", usable), "", "")
		}
		return
	}
	if capacity > usable {
		x.add(Critical, "capacity-beyond-postgres", fmt.Sprintf("The capacity of %d is beyond the %d "+
			"connections that Postgres has: max_connections %d less %d reserved.", capacity, usable,
			v.MaxConnections, v.Reserved), x.Command("capacity", strconv.Itoa(max(1, room))),
			"Callers queue instead of failing with \"too many clients\".")
		return
	}
	if x.Held > 0 && v.Ours > capacity+2 && capacity > 0 {
		x.add(Critical, "beyond-capacity", fmt.Sprintf("%d backends seem to be the fleet's (%s), and "+
			"the capacity is %d. Some open connections without PassBuddy, or with another "+
			"semaphore.", v.Ours, v.Guess, capacity), "passbuddy list",
			"Lists the semaphores of this Redis.")
	}
	if capacity <= room || capacity == 0 {
		return
	}
	list := strangers(v)
	severity := Warning
	if v.Free() == 0 {
		severity = Critical
	}
	text := fmt.Sprintf("Others hold %d of the %d connections that Postgres has", v.Others, usable)
	switch {
	case len(list) > 0 && list[0].n <= v.Others:
		text += fmt.Sprintf(", %s alone %d", list[0], list[0].n)
	case len(list) > 0: // some of its backends are ours, by our own count
		text += fmt.Sprintf(", most of them %s", list[0])
	}
	text += fmt.Sprintf(". That leaves %d for our capacity of %d", room, capacity)
	if v.Free() == 0 {
		text += ", and none is free now"
	}
	effect := fmt.Sprintf("Callers queue for %d connections instead of failing with \"too many "+
		"clients\". Until `passbuddy capacity auto`.", max(1, room))
	x.add(severity, "others", text+".", x.Command("capacity", strconv.Itoa(max(1, room))), effect)
	if len(list) > 0 && list[0].idle > 0 {
		a := list[0]
		x.add(severity, "others-idle", fmt.Sprintf("%d of the %d backends of %s are idle.", a.idle,
			a.n, a), terminate(a.where+" and state = 'idle'"), fmt.Sprintf(
			"Ends those %d. Their client may connect again: bound its pool, or have it take part "+
				"by `passbuddy proxy`.", a.idle))
	}
}

// terminate is the command that ends the backends that a condition finds.
func terminate(where string) string {
	return "psql -c " + quote("select pg_terminate_backend(pid) from pg_stat_activity where "+where)
}

// limits finds roles and databases that allow fewer connections than the capacity.
func (x *diagnosis) limits(v *View) {
	used := make(map[string]bool)
	for _, g := range v.Backends {
		if g.Ours {
			used["role "+g.User], used["database "+g.Database] = true, true
		}
	}
	for _, l := range v.Limits {
		if !used[l.Kind+" "+l.Name] || x.Capacity.InForce == 0 || l.Limit >= x.Capacity.InForce {
			continue
		}
		severity := Warning
		if l.Backends >= l.Limit {
			severity = Critical
		}
		x.add(severity, "connection-limit", fmt.Sprintf("The %s %s has a limit of %s, %d of them in "+
			"use, and the capacity is %d.", l.Kind, l.Name, Count(l.Limit, "connection"), l.Backends,
			x.Capacity.InForce), x.Command("capacity", strconv.Itoa(max(1, l.Limit))),
			fmt.Sprintf("Callers queue instead of failing. Or raise it: alter %s %s connection "+
				"limit %d.", l.Kind, `"`+strings.ReplaceAll(l.Name, `"`, `""`)+`"`,
				x.Capacity.InForce))
	}
}

// idleTransactions finds clients that keep transactions open and run nothing.
func (x *diagnosis) idleTransactions(v *View) {
	for _, g := range v.Backends {
		if !strings.HasPrefix(g.State, pgview.IdleInTransaction) || g.OldestState < longIdle {
			continue
		}
		whose, severity := "others'", Info
		if g.Ours {
			whose = "ours"
		}
		if x.wanted() || v.Free() == 0 {
			severity = Warning
		}
		a := application{name: g.Application, user: g.User, address: g.Address}
		seconds := int(longIdle)
		x.add(severity, "idle-in-transaction", fmt.Sprintf("%s of %s (%s, by the look of it) %s "+
			"idle in transaction, one for %s already.", Count(g.Backends, "backend"), a, whose,
			Verb(g.Backends, "is", "are"), Span(g.OldestState)), terminate(fmt.Sprintf(
			"application_name = %s and usename = %s and state like 'idle in transaction%%' and "+
				"state_change < now() - interval '%d s'", literal(g.Application), literal(g.User),
			seconds)), fmt.Sprintf("Ends those that have been so for more than %d s; their "+
			"transactions roll back.", seconds))
	}
}
