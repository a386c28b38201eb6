package status

import (
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/pgview"
)

var now = time.Date(2026, 11, 27, 3, 12, 0, 0, time.UTC)

// calm is a fleet of two, at its cap, in which nobody waits for long.
func calm() Document {
	process := func(owner string) Process {
		return Process{Session: "s-" + owner, Owner: owner, Host: "h", PID: 7, Program: "api",
			Version: "v1", Started: now.Add(-time.Hour), Capacity: 10, Weight: 1, TTL: 5, Lease: 4,
			Age: 1, Permits: 5, InUse: 4, Idle: 1, Due: 5,
			Pools: []Pool{{Name: "p", Permits: 5, InUse: 4, Idle: 1}}}
	}
	return Document{
		Version: Version, Semaphore: "semaphore", Prefix: "passbuddy", At: now,
		Capacity: Capacity{InForce: 10, Declared: []Declared{{10, 2}}},
		Held:     10, InUse: 8, Idle: 2, Processes: []Process{process("a"), process("b")},
	}
}

// wait has b's callers wait.
func wait(d *Document, seconds float64) {
	d.Processes[1].Waiting, d.Processes[1].Queued, d.Processes[1].OldestWait = 3, 1, seconds
	d.Callers, d.Waiting, d.OldestWaitSeconds = 3, 1, seconds
}

func server(others int) *View {
	v := &View{MaxConnections: 20, Reserved: 3, CheckInterval: 2, Backends: []Group{
		{User: "app", Database: "d", State: "active", Backends: 10},
		{Application: "cron's", User: "bob", Address: "10.0.0.9", State: "idle", Backends: others},
	}}
	v.Mark(pgview.Fleet{Connections: 10})
	return v
}

func TestDiagnose(t *testing.T) {
	for _, c := range []struct {
		name     string
		change   func(d *Document)
		severity string // "": no finding
		code     string
		says     []string // in the text, the command or the effect
	}{
		{"nothing", func(*Document) {}, "", "", nil},
		{"waiting in turn is healthy", func(d *Document) { wait(d, 0.3) }, "", "", nil},
		{"nobody", func(d *Document) {
			*d = Document{Semaphore: "x", Prefix: "passbuddy"}
		}, Info, "nobody", []string{`"x"`, "passbuddy list"}},
		{"redis gone", func(d *Document) { d.RedisError = "no route" }, Critical, "redis",
			[]string{"no route", "passbuddy doctor"}},
		{"redis silent", func(d *Document) {
			d.RedisError = `snapshot of "x": semaphore: Redis is unavailable: read the time: ` +
				"context deadline exceeded"
		}, Critical, "redis", []string{"Redis cannot be asked: read the time: context deadline " +
			"exceeded, no answer in time. Sessions"}},
		{"paused", func(d *Document) {
			until := now.Add(time.Minute)
			d.Pause = &Pause{By: "ann@desk", Reason: "failover", Since: now.Add(-20 * time.Second),
				Until: &until}
		}, Warning, "paused", []string{"by ann@desk 20s ago", "for 60s more", "failover",
			"passbuddy resume"}},
		{"paused while callers wait", func(d *Document) {
			wait(d, 0.1)
			d.Pause = &Pause{By: "ann@desk", Since: now}
		}, Critical, "paused", []string{"until somebody resumes", "3 callers wait"}},
		{"draining", func(d *Document) {
			d.Pause = &Pause{By: "ann@desk", Since: now, Drain: true}
		}, Warning, "drained", []string{"being drained", "10 permits are still held by a and b"}},
		{"state lost", func(d *Document) { d.GrantsPaused = 2.5 }, Critical, "state-lost",
			[]string{"2.5s more"}},
		{"mismatch", func(d *Document) {
			d.Processes[1].Capacity = 40
			d.Capacity.Declared = []Declared{{10, 1}, {40, 1}}
			d.Capacity.Mismatch = true
		}, Warning, "mismatch", []string{"a (api, pid 7 on h) declares a capacity of 10",
			"1 other process declares 40", "passbuddy capacity 40"}},
		{"mismatch that hurts", func(d *Document) {
			wait(d, 3)
			d.Capacity.Declared = []Declared{{10, 1}, {40, 1}}
			d.Capacity.Mismatch = true
		}, Critical, "mismatch", nil},
		{"operator's capacity", func(d *Document) {
			at := now.Add(-3 * time.Hour)
			d.Capacity = Capacity{InForce: 4, Operator: 4, SetBy: "ann@desk", SetAt: &at,
				Declared: d.Capacity.Declared}
			wait(d, 3)
		}, Critical, "operator-capacity", []string{"ann@desk has set the capacity to 4 3h00m ago",
			"sessions declare 10", "passbuddy capacity auto"}},
		{"operator's capacity, nobody waits", func(d *Document) {
			d.Capacity.Operator, d.Capacity.InForce = 40, 40
		}, Info, "operator-capacity", nil},
		{"stuck holder", func(d *Document) {
			d.Processes[0].Permits, d.Processes[0].InUse, d.Processes[0].OldestUse = 9, 9, 840
			d.Processes[0].Pools[0].Permits = 9
			wait(d, 3)
		}, Critical, "stuck-holder", []string{"a (api, pid 7 on h) holds 9 of 10", "due 5.0", "14m",
			"passbuddy evict s-a --force", "Recalls its 9 permits"}},
		{"a long use within its share", func(d *Document) {
			d.Processes[0].OldestUse = 90
			wait(d, 1)
		}, Warning, "long-use", []string{"a (api", "90s", "LISTEN"}},
		{"LISTEN, while nobody waits", func(d *Document) { d.Processes[0].OldestUse = 7200 }, Info,
			"long-use", []string{"2h00m"}},
		{"hijacked, while others wait", func(d *Document) {
			d.Processes[0].OldestUse, d.Processes[0].Hijacked = 90, 1
			wait(d, 1)
		}, Warning, "long-use", []string{"1 connection is hijacked"}},
		{"many connections stay out", func(d *Document) {
			for i := range d.Processes {
				p := &d.Processes[i]
				p.OldestUse, p.Hijacked, p.LongUse = 250, 3, 4-i
				p.Pools[0].Hijacked, p.Pools[0].LongUse = 3, 4-i
			}
			wait(d, 3)
		}, Critical, "held-connections", []string{"7 of 10 permits", "in a and b: 6 hijacked",
			"1 in use for over a minute", "the oldest for 4m", "docs/HELD-CONNECTIONS.md"}},
		{"many stay out of many processes", func(d *Document) {
			d.Processes[1].Pools = []Pool{{Name: "p", Permits: 5, InUse: 5, LongUse: 5}}
			wait(d, 3)
			for _, owner := range []string{"c", "d", "e"} {
				p := d.Processes[0]
				p.Owner, p.Session = owner, "s-"+owner
				p.Pools = []Pool{{Name: "p", Permits: 1, InUse: 1, LongUse: 1}}
				d.Processes = append(d.Processes, p)
			}
		}, Critical, "held-connections", []string{"8 of 10 permits",
			"in 4 processes, 5 of them in b (api, pid 7 on h): 0 hijacked"}},
		{"few connections stay out", func(d *Document) {
			d.Processes[0].Pools[0].Hijacked, d.Processes[0].Hijacked = 4, 4
			wait(d, 3)
		}, Critical, "saturated", nil},
		{"many stay out, and nobody waits", func(d *Document) {
			d.Processes[0].Pools[0].Hijacked, d.Processes[0].Hijacked = 9, 9
		}, "", "", nil},
		{"nothing came back", func(d *Document) {
			d.Processes[1].Pools[0].NewestUse = 11
			wait(d, 12)
		}, Warning, "nothing-returned", []string{"Callers of b (api, pid 7 on h) wait",
			"the first for 12s", "4 connections in use there have not come back",
			"hold one connection while they ask for another"}},
		{"something came back", func(d *Document) {
			d.Processes[1].Pools = append(d.Processes[1].Pools,
				Pool{Name: "q", InUse: 1, NewestUse: 0.4})
			d.Processes[1].Pools[0].NewestUse = 11
			wait(d, 12)
		}, Critical, "saturated", nil},
		{"permits of no pool", func(d *Document) {
			d.Processes[0].Permits, d.Processes[0].Pools = 9, nil
			wait(d, 3)
		}, Warning, "unpooled", []string{"holds 9 of 10", "evict s-a --force"}},
		{"more than due", func(d *Document) {
			d.Processes[0].Permits, d.Processes[0].Due = 9, 2
			d.Processes[0].Pools[0].Permits = 9
			wait(d, 3)
		}, Warning, "greedy-holder", []string{"holds 9 of 10", "passbuddy evict s-a"}},
		{"silent session", func(d *Document) { d.Processes[0].Age, d.Processes[0].Lease = 4, 1 }, "", "",
			nil}, // replaced below: of two sessions one is half
		{"all silent", func(d *Document) { d.Processes[0].Age, d.Processes[1].Age = 4, 4 }, Critical,
			"silent", []string{"2 of 2 sessions"}},
		{"versions", func(d *Document) { d.Processes[0].Version = "v2" }, Info, "versions",
			[]string{"v1 in 1 process, v2 in 1 process"}},
		{"TTLs", func(d *Document) { d.Processes[0].TTL = 60 }, Warning, "ttl", []string{"5.0s to 60s"}},
		{"quarantine", func(d *Document) { d.Quarantined = 2 }, Warning, "quarantine",
			[]string{"2 permits are in quarantine"}},
		{"other clients", func(d *Document) { d.Others = 1 }, Info, "other-clients", nil},
		{"slow Redis", func(d *Document) { d.Processes[1].RoundTrip = 1.5 }, Warning, "slow-redis",
			[]string{"1.5s", "b (api", "30 % of a lease"}},
		{"a Redis too slow", func(d *Document) { d.Processes[1].RoundTrip = 3 }, Critical, "slow-redis",
			nil},
		{"stalled", func(d *Document) {
			d.Events = []Event{{At: now.Add(-10 * time.Second), Kind: "reported", Session: "s-a",
				Detail: "leases lost: 3; Redis did not answer for 6.1s"}}
		}, Critical, "redis-stalled", []string{"1 session for up to 6.1s", "1 of them lost leases"}},
		{"stalled long ago", func(d *Document) {
			d.Events = []Event{{At: now.Add(-time.Hour), Kind: "reported", Session: "s-a",
				Detail: "Redis did not answer for 6.1s"}}
		}, "", "", nil},
		{"lost leases", func(d *Document) {
			d.Events = []Event{{At: now.Add(-time.Minute), Kind: "reported", Session: "s-a",
				Detail: "leases lost: 3"}}
		}, Warning, "lost-leases", nil},
		{"state was lost", func(d *Document) {
			d.Events = []Event{{At: now.Add(-time.Minute), Kind: "state lost", Session: "s-a"}}
		}, Warning, "state-was-lost", []string{"60s ago"}},
		{"others leave too little", func(d *Document) { d.Postgres = server(8) }, Critical, "others",
			[]string{"Others hold 8 of the 17", "cron's (bob from 10.0.0.9) alone 8", "leaves 9",
				"passbuddy capacity 9", "queue for 9 connections"}},
		{"others' idle backends", func(d *Document) { d.Postgres = server(8) }, Critical, "others-idle",
			[]string{`'\''cron'\'''\''s'\''`, "Ends those 8"}},
		{"a capacity beyond Postgres", func(d *Document) {
			d.Postgres, d.Capacity.InForce = server(2), 30
		}, Critical, "capacity-beyond-postgres", []string{"30", "17", "passbuddy capacity 15"}},
		{"more backends than the capacity", func(d *Document) {
			d.Postgres = server(2)
			d.Capacity.InForce = 5
		}, Critical, "beyond-capacity", []string{"10 backends"}},
		{"role limit", func(d *Document) {
			d.Postgres = server(2)
			d.Postgres.Limits = []pgview.Limit{{Kind: "role", Name: "app", Limit: 6, Backends: 6}}
		}, Critical, "connection-limit", []string{"role app", "passbuddy capacity 6",
			`alter role "app" connection limit 10`}},
		{"idle in transaction", func(d *Document) {
			d.Postgres = server(2)
			d.Postgres.Backends[0].State = "idle in transaction"
			d.Postgres.Backends[0].OldestState = 300
			wait(d, 0.1)
		}, Warning, "idle-in-transaction", []string{"ours", "5m", "pg_terminate_backend"}},
		{"Postgres is full for us, too", func(d *Document) { d.PostgresError = pgview.ErrFull.Error() },
			Critical, "postgres-full", nil},
		{"Postgres unreachable", func(d *Document) { d.PostgresError = "refused" }, Warning, "postgres",
			[]string{"refused"}},
		{"check interval", func(d *Document) {
			d.Postgres = server(2)
			d.Postgres.CheckInterval = 0
		}, Info, "check-interval", []string{"2s"}},
		{"timeouts", func(d *Document) {
			d.RecentTimeouts, d.RecentSeconds, d.Processes[1].RecentTimeouts = 7, 60, 5
		}, Critical, "timeouts", []string{"7 callers", "60s", "5 of them in b"}},
		{"saturated", func(d *Document) { wait(d, 4.8) }, Critical, "saturated",
			[]string{"3 callers wait", "4.8s", "all 10 permits", "--from-postgres"}},
		{"cannot open", func(d *Document) {
			wait(d, 4.8)
			d.Held, d.Processes[1].Opening = 8, 2
		}, Warning, "cannot-open", []string{"8 of 10", "2 connections are being opened"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := calm()
			c.change(&d)
			found := Diagnose(d)
			if c.name == "silent session" {
				c.severity, c.code = Warning, "silent"
				d.Processes = append(d.Processes, calm().Processes[1])
				d.Processes[2].Session = "s-c"
				found = Diagnose(d)
			}
			if c.severity == "" {
				if len(found) > 0 {
					t.Errorf("found %+v", found)
				}
				return
			}
			for _, code := range []string{"held-connections", "nothing-returned"} {
				x := diagnosis{found: found}
				if x.told(code) && c.code != code {
					t.Errorf("found %s: %+v", code, found)
				}
			}
			for i, f := range found {
				if i > 0 && ranks[f.Severity] < ranks[found[i-1].Severity] {
					t.Errorf("not the worst first: %+v", found)
				}
			}
			for _, f := range found {
				if f.Code != c.code {
					continue
				}
				if f.Severity != c.severity {
					t.Errorf("%s, want %s: %+v", f.Severity, c.severity, f)
				}
				all := f.Text + "\n" + f.Command + "\n" + f.Effect
				for _, s := range c.says {
					if !strings.Contains(all, s) {
						t.Errorf("does not say %q:\n%s", s, all)
					}
				}
				return
			}
			t.Errorf("no %s: %+v", c.code, found)
		})
	}
}

// A deploy is told by the log, or by when the processes started.
func TestDeploy(t *testing.T) {
	d := calm()
	d.Processes = append(d.Processes, d.Processes...)
	for i, name := range []string{"web-old-1", "web-old-2", "web-new-1", "web-new-2"} {
		p := &d.Processes[i]
		p.Owner, p.Session = name, "s-"+name
		if i == 2 {
			d.Events = []Event{{At: now.Add(-time.Minute), Kind: "joined", Session: p.Session}}
		}
		if i == 3 {
			p.Started = now.Add(-40 * time.Second)
		}
	}
	d.Capacity.Declared[0].Sessions = 4
	d.Postgres = server(2)
	d.Postgres.MaxConnections = 100
	found := Diagnose(d)
	if len(found) != 1 || found[0].Code != "deploy" || found[0].Severity != Info ||
		!strings.Contains(found[0].Text, "web-new-1 and web-new-2 joined within 60s") ||
		!strings.Contains(found[0].Command, "passbuddy capacity 20") {
		t.Errorf("%+v", found)
	}
	wait(&d, 0.3)
	if found = Diagnose(d); found[0].Severity != Warning {
		t.Errorf("%+v", found)
	}
}

func TestCommandsAreForAShell(t *testing.T) {
	d := Document{Semaphore: "semaphore", Prefix: "passbuddy"}
	if got := d.Command("evict", "a/b:1"); got != "passbuddy evict a/b:1" {
		t.Error(got)
	}
	d = Document{Semaphore: "it's $(x)", Prefix: "p"}
	want := `passbuddy resume --name 'it'\''s $(x)' --prefix p`
	if got := d.Command("resume"); got != want {
		t.Error(got)
	}
}

func TestSpan(t *testing.T) {
	for seconds, want := range map[float64]string{
		0: "0ms", -1: "0s", 0.0002: "0.2ms", 0.84: "840ms", 4.8: "4.8s", 59: "59s", 119: "119s",
		840: "14m", 11100: "3h05m", 86400 * 3: "3d",
	} {
		if got := Span(seconds); got != want {
			t.Errorf("%v: %s, want %s", seconds, got, want)
		}
	}
}
