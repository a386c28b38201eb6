// Package incident plays a fleet in trouble, for the tests of the page and for its pictures. A
// scene is the document of each second since it began. No Redis is asked.
package incident

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/status"
)

// A Scene tells what the fleet looks like after a time; before it begins, all is calm. It returns an error for a Redis that fails.
type Scene func(after time.Duration) (status.Document, error)

// Scenes are all scenes, by name.
var Scenes = map[string]Scene{
	"calm": calm, "others": others, "stuck": stuck, "deploy": deploy, "mismatch": mismatch,
	"stalled": stalled, "paused": paused, "hostile": hostile, "large": large, "empty": empty,
}

// A scene returns errStalled while Redis is silent. Source then waits for the end of its
// ctx.
var errStalled = errors.New("stalled")

// begin is the time of all scenes, so that pictures differ only where the page does.
var begin = time.Date(2026, 11, 27, 3, 12, 0, 0, time.UTC)

// A Play is a scene that goes on: each call of Source is one second later.
type Play struct {
	scene Scene

	mu    sync.Mutex
	after time.Duration
	calls int
}

// New returns a play that begins some time after the scene did.
func New(scene Scene, after time.Duration) *Play { return &Play{scene: scene, after: after} }

// Source is the Source of a page.
func (p *Play) Source(ctx context.Context) (status.Document, error) {
	p.mu.Lock()
	p.calls++
	after := p.after
	p.after += time.Second
	p.mu.Unlock()
	document, err := p.scene(after)
	if errors.Is(err, errStalled) {
		<-ctx.Done()
		document = status.Document{
			Semaphore: "orders", Prefix: "passbuddy", RedisError: ctx.Err().Error(),
		}
		document.Findings = status.Diagnose(document)
		return document, ctx.Err()
	}
	document.Events = slices.DeleteFunc(document.Events, func(e status.Event) bool {
		return e.At.After(document.At)
	})
	if document.Findings == nil {
		document.Findings = status.Diagnose(document)
	}
	return document, err
}

// Calls is how often Source was called.
func (p *Play) Calls() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}

// wave is a figure that moves as live ones do, the same in each run.
func wave(after time.Duration, period, low, high float64) float64 {
	phase := 2*math.Pi*after.Seconds()/period + period
	return low + (high-low)*(1+math.Sin(phase)*math.Cos(phase*0.37))/2
}

// A member describes one process of a scene.
type member struct {
	name           string
	permits, inUse int
	opening        int
	callers        int
	oldestWait     float64
	oldestUse      float64
	timeouts       int64
	declares       int
	version        string
	started        time.Duration // since the scene began; mostly before it
	weight         int
}

// fleet makes a document of its members.
func fleet(after time.Duration, capacity int, members []member) status.Document {
	now := begin.Add(after)
	d := status.Document{
		Version: status.Version, Semaphore: "orders", Prefix: "passbuddy", At: now,
		Capacity: status.Capacity{InForce: capacity},
	}
	sessions := make(map[int]int)
	weights := 0.0
	for i := range members {
		if members[i].weight == 0 {
			members[i].weight = 1
		}
		if members[i].declares == 0 {
			members[i].declares = capacity
		}
		if members[i].version == "" {
			members[i].version = "v0.2.0"
		}
		weights += float64(members[i].weight)
	}
	for i, m := range members {
		sessions[m.declares]++
		idle := m.permits - m.inUse - m.opening
		p := status.Process{
			Session: fmt.Sprintf("0198f3c2-7a%02x-%04x", i, 0x7000+i*37), Owner: m.name,
			Host: m.name, PID: 7 + i, Program: "orders-api", Version: m.version,
			Started: begin.Add(m.started), Capacity: m.declares, Permits: m.permits,
			InUse: m.inUse, Idle: idle, Opening: m.opening,
			Weight: m.weight, Due: float64(capacity) * float64(m.weight) / weights, TTL: 5,
			Waiting: m.callers, OldestWait: m.oldestWait, OldestUse: m.oldestUse,
			Timeouts: m.timeouts, Lease: 3.5 + math.Mod(after.Seconds()+float64(i), 1.5),
			Age: math.Mod(after.Seconds()+float64(i)*0.3, 1.6),
		}
		p.Pools = []status.Pool{{
			Name: "db-primary:5432/orders", Permits: p.Permits, InUse: p.InUse, Idle: p.Idle,
			Waiting: p.Waiting, OldestWait: p.OldestWait, OldestUse: p.OldestUse,
			Timeouts: p.Timeouts,
		}}
		d.Processes = append(d.Processes, p)
		d.Held += m.permits
		d.InUse += m.inUse
		d.Idle += idle
		d.Callers += m.callers
		d.OldestWaitSeconds = max(d.OldestWaitSeconds, m.oldestWait)
		d.Timeouts += m.timeouts
		if m.callers > 0 {
			d.Waiting++
			d.Waiters = append(d.Waiters, status.Waiter{
				Session: p.Session, Owner: p.Owner, N: 1, Pool: p.Pools[0].Name,
			})
		}
	}
	for capacity, n := range sessions {
		declared := status.Declared{Capacity: capacity, Sessions: n}
		d.Capacity.Declared = append(d.Capacity.Declared, declared)
	}
	slices.SortFunc(d.Capacity.Declared, func(a, b status.Declared) int {
		return a.Capacity - b.Capacity
	})
	d.Capacity.Mismatch = len(sessions) > 1
	return d
}

// webs are n processes that share a number of permits evenly.
func webs(after time.Duration, n, permits int, callers float64) []member {
	members := make([]member, n)
	for i := range members {
		held := permits / n
		if i < permits%n {
			held++
		}
		waits := int(wave(after+time.Duration(i)*7*time.Second, 40, 0, callers))
		members[i] = member{
			name: fmt.Sprintf("web-7d4b9c-%s", suffixes[i%len(suffixes)]), permits: held,
			inUse:   min(held, int(wave(after+time.Duration(i)*3*time.Second, 23, 0, float64(held)+0.9))),
			callers: waits, started: -time.Duration(9+i) * time.Hour,
		}
		if waits > 0 {
			members[i].oldestWait = wave(after+time.Duration(i)*time.Second, 17, 0.004, 0.08)
		}
	}
	return members
}

var suffixes = []string{
	"2xk4p", "5mq9z", "8rtvl", "bq7wn", "c4hjd", "fz6ms", "gk2xv", "hn8bt", "jw5rc", "l9dqf",
	"mx3zk", "p7vgs", "q2nhw", "r6cjb", "sv4tm", "t8lxd", "vb9kq", "w3fzp", "x5gnr", "zd7hc",
}

func event(after time.Duration, kind, owner, by, detail string) status.Event {
	e := status.Event{At: begin.Add(after), Kind: kind, Owner: owner, By: by, Detail: detail}
	if owner != "" {
		e.Session = "0198f3c2-" + owner
	}
	return e
}

// postgres is a server with what the fleet and the others have of it.
func postgres(d *status.Document, others ...status.Group) {
	view := &status.View{
		MaxConnections: 100, Reserved: 3, SuperuserReserved: 3, CheckInterval: 2, Ours: d.Held,
		Guess: "by application_name",
	}
	view.Backends = append(view.Backends,
		status.Group{
			Application: "orders-api", User: "orders", Address: "10.4.0.0/16", State: "active",
			Backends: d.InUse, Ours: true,
		},
		status.Group{
			Application: "orders-api", User: "orders", Address: "10.4.0.0/16", State: "idle",
			Backends: d.Held - d.InUse, Ours: true,
		})
	for _, g := range others {
		view.Others += g.Backends
		view.Backends = append(view.Backends, g)
	}
	d.Postgres = view
}

var usualOthers = []status.Group{
	{Application: "datadog-agent", User: "datadog", Address: "10.4.9.11", State: "idle", Backends: 2},
	{Application: "psql", User: "ana", Address: "10.8.0.4", State: "idle", Backends: 1},
	{Application: "pg_basebackup", User: "replicator", Address: "10.4.1.3", State: "active", Backends: 1},
}

// calm: all is well, and all permits are held, which is healthy.
func calm(after time.Duration) (status.Document, error) {
	d := fleet(after, 40, webs(after, 12, 40, 1.6))
	postgres(&d, usualOthers...)
	d.Events = []status.Event{
		event(-50*time.Minute, "joined", "web-7d4b9c-p7vgs", "", ""),
		event(-49*time.Minute, "left", "web-6c8f77-aa2kd", "", ""),
	}
	return d, nil
}

// others: another stack takes the slots of Postgres that the capacity counts on.
func others(after time.Duration) (status.Document, error) {
	if after < -40*time.Second {
		return calm(after)
	}
	members := webs(after, 12, 31, 14)
	for i := range members {
		members[i].inUse = members[i].permits
		members[i].callers += 3
		members[i].oldestWait = wave(after+time.Duration(i)*time.Second, 11, 2.1, 4.8)
		members[i].timeouts = int64(after.Seconds() * 0.4 * float64(1+i%3))
		if i < 4 {
			members[i].opening, members[i].inUse = 1, members[i].inUse-1
		}
	}
	d := fleet(after, 40, members)
	postgres(&d, append([]status.Group{
		{Application: "rails-reporting", User: "reporting", Address: "10.6.2.17", State: "idle", Backends: 48},
		{Application: "rails-reporting", User: "reporting", Address: "10.6.2.17", State: "active", Backends: 14},
	}, usualOthers...)...)
	d.Postgres.Ours = 31
	d.Events = []status.Event{
		event(-32*time.Second, "reported", "web-7d4b9c-2xk4p", "", "Postgres refused a connection: too many clients already"),
		event(-29*time.Second, "reported", "web-7d4b9c-bq7wn", "", "Postgres refused a connection: too many clients already"),
	}
	return d, nil
}

// stuck: one process keeps what it has, and the others starve.
func stuck(after time.Duration) (status.Document, error) {
	if after < -150*time.Second {
		return calm(after)
	}
	members := webs(after, 11, 18, 9)
	for i := range members {
		members[i].inUse = members[i].permits
		members[i].callers += 2
		members[i].oldestWait = wave(after+time.Duration(i)*time.Second, 13, 0.8, 3.1)
		members[i].timeouts = int64(after.Seconds() * 0.2 * float64(i%3))
	}
	members = append(members, member{
		name: "batch-export-0", permits: 22, inUse: 22, oldestUse: 840 + after.Seconds(),
		started: -26 * time.Minute,
	})
	d := fleet(after, 40, members)
	postgres(&d, usualOthers...)
	d.Events = []status.Event{event(-26*time.Minute, "joined", "batch-export-0", "", "")}
	return d, nil
}

// deploy: a deploy runs the old and the new processes side by side.
func deploy(after time.Duration) (status.Document, error) {
	if after < -44*time.Second {
		return calm(after)
	}
	members := webs(after, 12, 20, 6)
	for i := range members {
		members[i].version = "v0.1.0"
		members[i].oldestWait = wave(after+time.Duration(i)*time.Second, 13, 0.2, 1.4)
		members[i].callers++
	}
	fresh := webs(after+31*time.Second, 12, 20, 8)
	for i := range fresh {
		fresh[i].name = fmt.Sprintf("web-8e21aa-%s", suffixes[(i+3)%len(suffixes)])
		fresh[i].started = -time.Duration(44-i) * time.Second
		fresh[i].oldestWait = wave(after+time.Duration(i)*time.Second, 13, 0.2, 1.9)
		fresh[i].callers += 2
		if i%3 == 0 && fresh[i].inUse > 0 {
			fresh[i].opening, fresh[i].inUse = 1, fresh[i].inUse-1
		}
	}
	d := fleet(after, 40, append(members, fresh...))
	postgres(&d, usualOthers...)
	for i := range fresh {
		d.Events = append(d.Events,
			event(-time.Duration(44-i)*time.Second, "joined", fresh[i].name, "", ""))
	}
	return d, nil
}

// mismatch: one process declares a smaller capacity, and it wins.
func mismatch(after time.Duration) (status.Document, error) {
	if after < -180*time.Second {
		return calm(after)
	}
	members := webs(after, 12, 9, 11)
	for i := range members {
		members[i].declares = 40
		members[i].callers += 4
		members[i].inUse = members[i].permits
		members[i].oldestWait = wave(after+time.Duration(i)*time.Second, 13, 1.2, 4.4)
		members[i].timeouts = int64(after.Seconds() * 0.3 * float64(i%4))
	}
	members = append(members, member{
		name: "cron-mailer-1", permits: 1, inUse: 0, declares: 10, started: -3 * time.Minute,
	})
	d := fleet(after, 10, members)
	postgres(&d, usualOthers...)
	d.Events = []status.Event{
		event(-3*time.Minute, "joined", "cron-mailer-1", "", "declares 10"),
		event(-3*time.Minute, "capacity", "cron-mailer-1", "", "from 40 to 10"),
	}
	return d, nil
}

// stalled: Redis answers for some seconds, and then no more.
func stalled(after time.Duration) (status.Document, error) {
	if after >= 4*time.Second {
		return status.Document{}, errStalled
	}
	return calm(after)
}

// paused: an operator drains the fleet for a failover.
func paused(after time.Duration) (status.Document, error) {
	if after < -21*time.Second {
		return calm(after)
	}
	left := max(0, 9-int(after.Seconds()/2))
	members := webs(after, 12, left, 13)
	for i := range members {
		members[i].inUse = members[i].permits
		members[i].callers += 2
		members[i].oldestWait = 20 + after.Seconds()
	}
	d := fleet(after, 40, members)
	postgres(&d, usualOthers...)
	until := begin.Add(10 * time.Minute)
	d.Pause = &status.Pause{
		By: "ana@10.8.0.4", Reason: "failover of db-primary", Since: begin.Add(-21 * time.Second),
		Until: &until, Drain: true,
	}
	d.Events = []status.Event{
		event(-21*time.Second, "paused", "", "ana@10.8.0.4", "failover of db-primary"),
	}
	return d, nil
}

// Hostile is a name as an attacker may write it into Redis.
const Hostile = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>` +
	"\u202e\"'&amp;`${1}"

// hostile: every text that comes from Redis or Postgres is hostile.
func hostile(after time.Duration) (status.Document, error) {
	d, err := mismatch(after)
	d.Capacity.SetBy, d.Capacity.Operator = Hostile, 40
	for i := range d.Processes {
		p := &d.Processes[i]
		p.Owner, p.Host, p.Program, p.Version = Hostile, Hostile, Hostile, Hostile
		p.Session = fmt.Sprint(i, Hostile)
		p.Pools[0].Name = Hostile
	}
	for i := range d.Waiters {
		d.Waiters[i].Owner, d.Waiters[i].Session, d.Waiters[i].Pool = Hostile, Hostile, Hostile
	}
	d.Pause = &status.Pause{By: Hostile, Reason: Hostile, Since: begin}
	d.Events = []status.Event{
		{At: begin, Kind: Hostile, Owner: Hostile, Session: Hostile, By: Hostile, Detail: Hostile},
		{At: begin, Kind: "joined", Owner: Hostile, Session: Hostile, Detail: Hostile},
	}
	d.Findings = []status.Finding{
		{Severity: Hostile, Text: Hostile, Command: Hostile, Effect: Hostile},
	}
	for i := range d.Postgres.Backends {
		g := &d.Postgres.Backends[i]
		g.Application, g.User, g.Address, g.State = Hostile, Hostile, Hostile, Hostile
	}
	return d, err
}

// large: a thousand processes.
func large(after time.Duration) (status.Document, error) {
	members := webs(after, 1000, 2000, 0.6)
	for i := range members {
		members[i].name = fmt.Sprintf("worker-%04d", i)
	}
	d := fleet(after, 2000, members)
	return d, nil
}

// empty: nobody has joined.
func empty(after time.Duration) (status.Document, error) {
	d := fleet(after, 0, nil)
	d.Capacity.InForce = 0
	return d, nil
}
