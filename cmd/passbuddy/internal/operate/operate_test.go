package operate

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/internal/status"
	"github.com/passbuddy/passbuddy/semaphore"
)

// Commands that look write nothing.
func TestLookingWritesNothing(t *testing.T) {
	d := newDesk(t)
	d.acquire(d.join(semaphore.Config{Owner: "web-1", Capacity: 4}))
	before := d.server.Dump()
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"list"}, {"events"}, {"capacity"},
		{"doctor"}, {"status", "--all"}} {
		_, complaint, code := d.run(args...)
		if code != exit.OK && args[0] != "doctor" {
			t.Errorf("%q: %d, %s", args, code, complaint)
		}
		if after := d.server.Dump(); after != before {
			t.Errorf("%q has written: %s\nbefore: %s", args, after, before)
		}
	}
}

func TestStatus(t *testing.T) {
	d := newDesk(t)
	d.acquire(d.join(semaphore.Config{Owner: "web-1", Capacity: 4}))
	d.expect(exit.OK, []string{"web-1", "1 of 4 permits", "declared by the only session", "joined web-1"},
		"status")
	var document status.Document
	if err := json.Unmarshal([]byte(d.expect(exit.OK, nil, "status", "--json")), &document); err != nil ||
		document.Version != 1 || document.Held != 1 || document.Processes[0].Owner != "web-1" {
		t.Errorf("%v: %+v", err, document)
	}
	if document.Findings == nil || document.Waiters == nil {
		t.Error("a list is null")
	}
	d.expect(exit.OK, []string{`"capacity": 4`}, "list", "--json")
	d.expect(exit.OK, []string{"4 declared by web-1"}, "capacity")
	d.expect(exit.OK, []string{"no state in Redis"}, "status", "--name", "elsewhere")
}

func TestStatusOverATime(t *testing.T) {
	d := newDesk(t)
	d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	d.expect(exit.OK, []string{"0 timeouts in the last"}, "status", "--over", "20ms")
}

func TestCheckFailsForWhatIsCritical(t *testing.T) {
	d := newDesk(t)
	d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	d.expect(exit.OK, nil, "status", "--check")
	d.env[PostgresEnv] = "postgres://u:p@127.0.0.1:1/db?connect_timeout=1"
	d.expect(exit.OK, []string{"Postgres cannot be asked"}, "status", "--check") // a warning
}

// Colours are for terminals, and not with NO_COLOR.
func TestColours(t *testing.T) {
	d := newDesk(t)
	d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	if out := d.expect(exit.OK, nil, "status"); strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
	d.terminal = true
	if out := d.expect(exit.OK, nil, "status"); !strings.Contains(out, "\x1b[") {
		t.Errorf("%q", out)
	}
	if out := d.expect(exit.OK, nil, "status", "--json"); strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
	d.env["NO_COLOR"] = "1"
	if out := d.expect(exit.OK, nil, "status"); strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
}

// A process chooses its owner's name. It writes nothing to the terminal but text.
func TestHostileOwner(t *testing.T) {
	d := newDesk(t)
	sem := d.join(semaphore.Config{Owner: "web\u202e\x1b]0;x\x07[2J", Capacity: 4})
	d.acquire(sem)
	for _, args := range [][]string{{"status"}, {"events"}, {"doctor"}, {"capacity"},
		{"evict", d.snapshot().Sessions[0].ID, "--timeout", "1ms", "--yes"}} {
		out, complaint, _ := d.run(args...)
		if strings.ContainsAny(out+complaint, "\x1b\x07\u202e") {
			t.Errorf("%q: %q", args, out+complaint)
		}
	}
}

// Verbs say what they do, with numbers, and ask. Without a terminal they need --yes.
func TestVerbsAsk(t *testing.T) {
	for _, args := range [][]string{{"capacity", "2"}, {"pause"},
		{"pause", "--drain"}, {"evict", "web-1"}} {
		d := newDesk(t)
		d.acquire(d.join(semaphore.Config{Owner: "web-1", Capacity: 4}))
		before := d.server.Dump()
		d.expect(exit.Declined, []string{"This ", "add --yes"}, args...)
		d.terminal = true
		for _, typed := range []string{"n\n", "\n", "", "yess\n"} {
			d.typed = typed
			d.expect(exit.Declined, []string{"[y/N]", "nothing was changed"}, args...)
		}
		if d.server.Dump() != before {
			t.Errorf("%q has written", args)
		}
	}
}

func TestCapacity(t *testing.T) {
	d := newDesk(t)
	d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	d.terminal, d.typed = true, "y\n"
	d.expect(exit.OK, []string{"from 4 to 2 for 1 process", "The capacity is 2 now"}, "capacity", "2")
	if s := d.snapshot(); s.Capacity != 2 || s.OperatorCapacity != 2 {
		t.Errorf("%+v", s)
	}
	d.terminal = false
	d.expect(exit.OK, []string{"set by", "4 declared by web-1"}, "capacity")
	d.expect(exit.OK, []string{"from 2 to 4", `"done": "capacity"`}, "capacity", "auto", "--yes", "--json")
	if s := d.snapshot(); s.Capacity != 4 || s.OperatorCapacity != 0 {
		t.Errorf("%+v", s)
	}
	d.expect(exit.OK, []string{"declare already"}, "capacity", "auto")
	for _, n := range []string{"0", "-1", "x", "1000001", "1.5"} {
		d.expect(exit.Usage, nil, "capacity", "--yes", "--", n)
	}
	d.expect(exit.Usage, []string{"--postgres"}, "capacity", "--from-postgres")
	d.expect(exit.Usage, nil, "capacity", "4", "--from-postgres")
}

func TestPauseAndResume(t *testing.T) {
	d := newDesk(t)
	sem := d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	d.expect(exit.OK, []string{"1 process", "resumes by itself after 1h0m0s"}, "pause", "--yes", "--for",
		"1h", "--reason", "failover")
	if p := d.snapshot().Pause; p == nil || p.Reason != "failover" || p.Drain || p.Until.IsZero() {
		t.Errorf("%+v", p)
	}
	d.expect(exit.OK, []string{"paused", "failover", "passbuddy resume"}, "status")
	d.expect(exit.OK, []string{"ends the pause", "failover"}, "resume", "--yes")
	d.expect(exit.OK, []string{"not paused"}, "resume")
	d.expect(exit.OK, []string{"Nothing is held any more"}, "pause", "--drain", "--yes")
	d.expect(exit.OK, nil, "resume", "--yes")
	d.acquire(sem) // no pool can give that back
	d.expect(exit.StillHeld, []string{"still held", "resumed"}, "pause", "--drain", "--timeout", "10ms",
		"--yes")
	if d.snapshot().Pause != nil {
		t.Error("still paused")
	}
	d.expect(exit.Usage, []string{"--drain"}, "pause", "--timeout", "1s")
	d.expect(exit.Usage, nil, "pause", "--for", "-1s")
}

// Ctrl-C during a drain says how the fleet is left.
func TestInterruptedDrain(t *testing.T) {
	d := newDesk(t)
	d.acquire(d.join(semaphore.Config{Owner: "web-1", Capacity: 4}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d.once(func() bool { return d.snapshot().Pause != nil }, cancel)
	_, complaint, code := d.runContext(ctx, "pause", "--drain", "--yes")
	if code != exit.Interrupted || !strings.Contains(complaint, "stays paused") ||
		!strings.Contains(complaint, "passbuddy resume") {
		t.Errorf("%d: %s", code, complaint)
	}
	if d.snapshot().Pause == nil {
		t.Error("not paused")
	}
}

func TestEvict(t *testing.T) {
	d := newDesk(t)
	sem := d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	d.join(semaphore.Config{Owner: "twin", Capacity: 4})
	d.join(semaphore.Config{Owner: "twin", Capacity: 4})
	d.expect(exit.OK, []string{"holds nothing"}, "evict", "web-1", "--yes")
	p := d.acquire(sem)
	d.expect(exit.Usage, []string{"2 sessions are called"}, "evict", "twin", "--yes")
	d.expect(exit.Usage, []string{"nobody", "passbuddy status"}, "evict", "nobody", "--yes")
	d.expect(exit.Usage, nil, "evict", "web-1", "--timeout", "-1s")
	d.expect(exit.StillHeld, []string{"recalls the 1 permit of web-1", "--force"}, "evict", "web-1",
		"--timeout", "10ms", "--yes")
	d.expect(exit.OK, []string{"revoked", "has been evicted"}, "evict", "web-1", "--timeout", "10ms",
		"--force", "--yes")
	_ = p
	d.expect(exit.OK, []string{"revoked"}, "events")
}

func TestEventsFollow(t *testing.T) {
	d := newDesk(t)
	d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	i, err := semaphore.NewInspector(d.client, "", "")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.tool().events(ctx, i, writer, io.Discard, true) }()
	line := make([]byte, 1000)
	n, _ := reader.Read(line)
	if !strings.Contains(string(line[:n]), "joined web-1") {
		t.Errorf("%q", line[:n])
	}
	d.join(semaphore.Config{Owner: "web-2", Capacity: 4})
	n, _ = reader.Read(line)
	if !strings.Contains(string(line[:n]), "joined web-2") {
		t.Errorf("%q", line[:n])
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestFreshEvents(t *testing.T) {
	event := func(s string) semaphore.Event { return semaphore.Event{Detail: s} }
	events := func(s string) (list []semaphore.Event) {
		for _, r := range s {
			list = append(list, event(string(r)))
		}
		return list
	}
	for _, c := range [][3]string{ // shown, now, fresh
		{"", "abc", "abc"}, {"abc", "abc", ""}, {"abc", "abcd", "d"}, {"abc", "bcde", "de"},
		{"abc", "xyz", "xyz"}, {"aa", "aaa", "a"}, {"abb", "abbb", "b"}, {"a", "", ""},
	} {
		got := ""
		for _, e := range fresh(events(c[0]), events(c[1])) {
			got += e.Detail
		}
		if got != c[2] {
			t.Errorf("%q then %q: %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestDoctor(t *testing.T) {
	d := newDesk(t)
	d.join(semaphore.Config{Owner: "web-1", Capacity: 4})
	d.join(semaphore.Config{Owner: "web-2", Capacity: 5})
	d.expect(exit.Trouble, []string{"answers in", "web-1 (", "declares a capacity of 4", "passbuddy capacity"},
		"doctor")
	var r report
	if err := json.Unmarshal([]byte(d.expect(exit.Trouble, nil, "doctor", "--json")), &r); err != nil ||
		r.Version != 1 || len(r.Checks) == 0 {
		t.Errorf("%v: %+v", err, r)
	}
	d.env[target.RedisEnv] = "redis://user:secret@127.0.0.1:1"
	d.expect(exit.Unavailable, []string{"127.0.0.1:1 does not answer", "Nothing listens there"}, "doctor")
}

func TestWhatInfoSays(t *testing.T) {
	for name, c := range map[string]struct {
		info map[string]string
		code string
	}{
		"eviction": {map[string]string{"maxmemory": "100", "maxmemory_policy": "allkeys-lru"}, "eviction"},
		"old":      {map[string]string{"redis_version": "5.0.7"}, "redis-version"},
		"replica":  {map[string]string{"role": "slave"}, "replica"},
		"bgsave":   {map[string]string{"rdb_last_bgsave_status": "err"}, "bgsave"},
		"loading":  {map[string]string{"loading": "1"}, "redis-loading"},
		"no aof":   {map[string]string{"aof_enabled": "0"}, "persistence"},
		"well": {map[string]string{"redis_version": "7.2.4", "maxmemory": "0",
			"maxmemory_policy": "allkeys-lru", "aof_enabled": "1", "role": "master"}, ""},
	} {
		r := &report{}
		r.server(c.info)
		switch {
		case c.code == "" && len(r.Findings) > 0:
			t.Errorf("%s: %+v", name, r.Findings)
		case c.code != "" && (len(r.Findings) != 1 || r.Findings[0].Code != c.code):
			t.Errorf("%s: %+v", name, r.Findings)
		}
	}
}

// No password of any URL is shown, whatever fails.
func TestNoPasswordIsShown(t *testing.T) {
	d := newDesk(t)
	good := d.env[target.RedisEnv]
	for _, c := range [][2]string{
		{"redis://user:secret@127.0.0.1:1", ""},
		{"redis://user:secret@no.such.host.invalid:1", ""},
		{"redis://user:secret/piece@127.0.0.1:1", ""},
		{"redis://user:secret@" + d.server.Addr(), ""}, // a wrong password
		{good, "postgres://user:secret@127.0.0.1:1/db?connect_timeout=1"},
		{good, "postgres://user:secret@127.0.0.1:x/db"},
		{good, "host=127.0.0.1 port=1 user=u password=secret connect_timeout=1"},
	} {
		for _, args := range [][]string{{"status"}, {"status", "--json"}, {"doctor"}, {"list"},
			{"capacity", "4", "--yes"}, {"evict", "x", "--yes"}, {"events"}} {
			d.env[target.RedisEnv], d.env[PostgresEnv] = c[0], c[1]
			out, complaint, _ := d.run(args...)
			if all := out + complaint; strings.Contains(all, "secret") || strings.Contains(all, "piece") {
				t.Errorf("%q with %q: %s", args, c, all)
			}
		}
	}
}

func TestUnreachableRedis(t *testing.T) {
	d := newDesk(t)
	d.env[target.RedisEnv] = "redis://127.0.0.1:1"
	for _, args := range [][]string{{"status"}, {"list"}, {"events"}, {"capacity"}, {"pause", "--yes"},
		{"resume", "--yes"}, {"evict", "x", "--yes"}, {"doctor"}} {
		d.expect(exit.Unavailable, []string{"connection refused"}, args...)
	}
	d.env = nil
	d.expect(exit.Usage, []string{"--redis", target.RedisEnv}, "status")
}

func TestExplainKeepsCodes(t *testing.T) {
	tool := &Tool{Target: &target.Target{}}
	for code, err := range map[int]error{
		exit.Failed: errors.New("x"), exit.Unavailable: semaphore.ErrUnavailable,
		exit.StillHeld: semaphore.ErrStillHeld, exit.Interrupted: context.Canceled,
		exit.Declined: exit.With(exit.Declined, nil),
	} {
		if got := exit.Code(tool.explain(err)); got != code {
			t.Errorf("%v: %d, want %d", err, got, code)
		}
	}
	if tool.explain(nil) != nil {
		t.Error("nil is an error")
	}
}
