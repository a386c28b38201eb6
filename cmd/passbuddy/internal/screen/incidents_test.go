package screen_test

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/pgview"
	"github.com/passbuddy/passbuddy/internal/status"
)

var night = time.Date(2026, 11, 27, 3, 12, 5, 0, time.UTC)

// fleetOf is a fleet of n equal processes that share held permits, all in use, with callers waiting
// in each.
func fleetOf(n, held, callers int, oldestWait float64) []status.Process {
	list := make([]status.Process, n)
	for i := range list {
		name := fmt.Sprintf("web-7d4b9c-%c%c%c", 'a'+i, 'p'-i%9, 'k'+i%7)
		p := status.Process{
			Session: fmt.Sprintf("s%02d", i), Owner: name, Host: name, PID: 7, Program: "orders-api",
			Version: "v0.2.0", Started: night.Add(-time.Duration(9+i) * time.Hour), Capacity: 40,
			Weight: 1, TTL: 5, Lease: 4.2, Age: 0.8, RoundTrip: 0.0007,
			Permits: held / n, Waiting: callers, OldestWait: oldestWait,
		}
		if i < held%n {
			p.Permits++
		}
		p.InUse = p.Permits
		if callers > 0 {
			p.Queued = 1
		}
		p.Pools = []status.Pool{{Name: "db-primary:5432/orders", Permits: p.Permits, InUse: p.InUse,
			Waiting: p.Waiting, OldestWait: oldestWait}}
		list[i] = p
	}
	return list
}

// document sums up what the processes say, as Build does.
func document(capacity int, processes []status.Process) status.Document {
	d := status.Document{
		Version: status.Version, Semaphore: "orders", Prefix: "passbuddy", At: night,
		Capacity:  status.Capacity{InForce: capacity, Declared: []status.Declared{}},
		Processes: processes,
	}
	declared := map[int]int{}
	for i, p := range processes {
		processes[i].Due = float64(capacity) / float64(len(processes))
		d.Held += p.Permits
		d.InUse += p.InUse
		d.Idle += p.Idle
		d.Callers += p.Waiting
		d.Waiting += p.Queued
		d.Timeouts += p.Timeouts
		d.OldestWaitSeconds = max(d.OldestWaitSeconds, p.OldestWait)
		declared[p.Capacity]++
	}
	for _, c := range []int{10, 40} {
		if declared[c] > 0 {
			one := status.Declared{Capacity: c, Sessions: declared[c]}
			d.Capacity.Declared = append(d.Capacity.Declared, one)
		}
	}
	d.Capacity.Mismatch = len(d.Capacity.Declared) > 1
	return d
}

func event(ago time.Duration, kind, owner, detail string) status.Event {
	return status.Event{At: night.Add(-ago), Kind: kind, Session: "s-" + owner, Owner: owner,
		Detail: detail}
}

// postgres is a server with the fleet's backends, and others'.
func postgres(ours int, others ...status.Group) *status.View {
	v := &status.View{Version: "17.2", MaxConnections: 100, Reserved: 3, SuperuserReserved: 3,
		CheckInterval: 2, Limits: []pgview.Limit{}}
	v.Backends = append([]status.Group{{User: "orders", Database: "orders", Address: "10.4.0.7",
		State: "active", Backends: ours}}, others...)
	v.Mark(pgview.Fleet{Names: []string{"orders-api"}, Connections: ours})
	return v
}

var usual = []status.Group{
	{Application: "datadog-agent", User: "datadog", Address: "10.4.9.11", State: "idle", Backends: 2},
	{Application: "psql", User: "ana", Address: "10.8.0.4", State: "idle", Backends: 1},
}

// incidents are the five that the first minute is judged by, and a quiet night.
var incidents = map[string]func() status.Document{
	"quiet": func() status.Document {
		list := fleetOf(12, 36, 0, 0)
		for i := range list {
			list[i].InUse, list[i].Idle = 1, 2
		}
		d := document(40, list)
		d.Postgres = postgres(36, usual...)
		d.Events = []status.Event{event(9*time.Hour, "joined", "web-7d4b9c-apk", "")}
		return d
	},
	// Another stack takes the slots of Postgres that the capacity counts on.
	"others": func() status.Document {
		list := fleetOf(12, 40, 5, 4.8)
		for i := range list {
			list[i].Timeouts = int64(3 * i)
			list[i].Opening, list[i].InUse = 1, list[i].InUse-1
		}
		d := document(40, list)
		d.Held, d.InUse = 40, 28
		d.Postgres = postgres(31, append([]status.Group{
			{Application: "rails-reporting", User: "reporting", Address: "10.6.2.17", State: "idle",
				Backends: 48},
			{Application: "rails-reporting", User: "reporting", Address: "10.6.2.17", State: "active",
				Backends: 15},
		}, usual...)...)
		return d
	},
	// One process keeps what it has, and the others starve.
	"stuck": func() status.Document {
		list := fleetOf(11, 18, 4, 3.1)
		list = append(list, status.Process{
			Session: "0198f3c2-batch", Owner: "batch-export-0", Host: "worker-3", PID: 4123,
			Program: "export", Version: "v0.2.0", Started: night.Add(-26 * time.Minute), Capacity: 40,
			Weight: 1, TTL: 5, Lease: 4, Age: 1, Permits: 22, InUse: 22, OldestUse: 840,
			Pools: []status.Pool{{Name: "db-primary:5432/orders", Permits: 22, InUse: 22,
				OldestUse: 840}},
		})
		d := document(40, list)
		d.Postgres = postgres(40, usual...)
		d.Events = []status.Event{event(26*time.Minute, "joined", "batch-export-0", "")}
		return d
	},
	// The old and the new processes run side by side.
	"deploy": func() status.Document {
		list := fleetOf(12, 20, 3, 1.4)
		fresh := fleetOf(12, 20, 4, 1.9)
		var events []status.Event
		for i := range fresh {
			p := &fresh[i]
			p.Owner = fmt.Sprintf("web-8e21aa-%c%c%c", 'd'+i, 'p'-i%9, 'k'+i%7)
			p.Host, p.Session, p.Version = p.Owner, "s-"+p.Owner, "v0.3.0"
			p.Started = night.Add(-time.Duration(44-i) * time.Second)
			events = append(events, event(time.Duration(44-i)*time.Second, "joined", p.Owner, ""))
		}
		d := document(40, append(list, fresh...))
		d.Postgres = postgres(40, usual...)
		d.Events = events
		return d
	},
	// One process declares a smaller capacity, and it wins.
	"mismatch": func() status.Document {
		list := fleetOf(12, 9, 6, 4.4)
		for i := range list {
			list[i].Timeouts = int64(i % 4)
		}
		list = append(list, status.Process{
			Session: "s-cron", Owner: "cron-mailer-1", Host: "cron-2", PID: 911, Program: "mailer",
			Version: "v0.2.0", Started: night.Add(-3 * time.Minute), Capacity: 10, Weight: 1, TTL: 5,
			Lease: 4, Age: 1, Permits: 1, Idle: 1,
		})
		d := document(10, list)
		d.Postgres = postgres(10, usual...)
		d.Events = []status.Event{event(3*time.Minute, "joined", "cron-mailer-1", "")}
		return d
	},
	// Redis stalled for some seconds, and answers again.
	"stalled": func() status.Document {
		list := fleetOf(12, 40, 2, 2.6)
		var events []status.Event
		for i := range list {
			list[i].Outages, list[i].RoundTrip = 1, 1.1
			detail := fmt.Sprintf("Redis did not answer for %d.%ds", 3+i%2, i)
			if i < 3 {
				detail = "leases lost: 2; " + detail
			}
			events = append(events, status.Event{At: night.Add(-20 * time.Second),
				Kind: "reported", Session: list[i].Session, Owner: list[i].Owner, Detail: detail})
		}
		d := document(40, list)
		d.Postgres = postgres(40, usual...)
		d.Events = events
		return d
	},
	// Redis does not answer at all.
	"gone": func() status.Document {
		d := status.Document{Version: status.Version, Semaphore: "orders", Prefix: "passbuddy"}
		d.RedisError = `snapshot of "passbuddy-orders": semaphore: Redis is unavailable: read the time: ` +
			"context deadline exceeded"
		d.Postgres = postgres(40, usual...)
		d.Postgres.Mark(pgview.Fleet{})
		return d
	},
}
