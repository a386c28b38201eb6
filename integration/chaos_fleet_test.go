//go:build unix

package integration

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// This file is the fleet of a chaos run: six processes, each behind proxies of its own, of which
// those that end are replaced.

// process is one of the fleet. Its name tells the place, and how many had that before.
type process struct {
	name   string
	place  int
	w      *worker
	stderr *tail
}

// place is where a process runs: what lies between it and the servers stays when it is replaced.
type place struct {
	redis, postgres *throwaway.Proxy
	front           *throwaway.Proxy // to Postgres, too: the first host of the process's DSN
	process         *process
	had             int // processes
}

type fleet struct {
	t      *testing.T
	job    job // of each, but for what the place says
	places []*place

	mu sync.Mutex

	// Guarded by mu.
	grants, checkouts, inTurn int
	failures                  []failure
	allowed                   []allowance
	expected                  int                     // failures that were allowed
	calms                     map[string]servedInTurn // by process: what it said of the last one
	probe                     probe
}

type failure struct {
	process string
	place   int
	mishap
}

// An allowance is a window in which operations may fail: of one place, or of all (-1).
type allowance struct {
	place       int
	from, until time.Time
}

// A probe waits for the first of what was asked for after a fault.
type probe struct {
	since           time.Time
	grant, checkout time.Duration // until then; 0: not yet
}

func startFleet(t *testing.T, redisAddr, postgresAddr string, processes int, j job) *fleet {
	t.Helper()
	f := &fleet{t: t, job: j, calms: make(map[string]servedInTurn)}
	for range processes {
		r, err := throwaway.StartProxy(redisAddr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		p, err := throwaway.StartProxy(postgresAddr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		front, err := throwaway.StartProxy(postgresAddr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = front.Close() })
		f.places = append(f.places, &place{redis: r, postgres: p, front: front})
	}
	for i := range processes {
		f.launch(i)
	}
	for _, p := range f.places {
		p.process.w.joined(t)
	}
	return f
}

// launch starts a process at a place, and does not wait until it has joined.
func (f *fleet) launch(at int) *process {
	f.t.Helper()
	pl := f.places[at]
	pl.had++
	p := &process{name: fmt.Sprintf("p%d.%d", at, pl.had), place: at, stderr: &tail{}}
	j := f.job
	j.Integration = []string{"pgxpool", "stdlib"}[at%2]
	// one that pauses, and so gives back and takes; not in a calm, for what moves is not in use
	if at == len(f.places)-1 {
		j.Pause = 300 * time.Millisecond
	}
	j.Redis = "redis://" + pl.redis.Addr() + "/0"
	dsn, err := url.Parse(j.Postgres)
	if err != nil {
		f.t.Fatal(err)
	}
	dsn.Host = pl.front.Addr() + "," + pl.postgres.Addr()
	q := dsn.Query()
	q.Set("connect_timeout", "5")
	q.Set("application_name", p.name)
	dsn.RawQuery = q.Encode()
	j.Postgres = dsn.String()
	p.w = startHeard(f.t, j, p.stderr, func(pr progress) { f.heard(p, pr) })
	pl.process = p
	return p
}

func (f *fleet) heard(p *process, pr progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grants += len(pr.Grants)
	f.checkouts += len(pr.Checkouts)
	for _, m := range pr.Failures {
		f.failures = append(f.failures, failure{p.name, p.place, m})
	}
	if pr.Calm != nil {
		f.calms[p.name] = *pr.Calm
	}
	if f.probe.since.IsZero() {
		return
	}
	f.probe.saw(&f.probe.grant, pr.Grants)
	f.probe.saw(&f.probe.checkout, pr.Checkouts)
}

func (p *probe) saw(first *time.Duration, stamps []stamp) {
	for _, s := range stamps {
		if took := time.Duration(s.Had - p.since.UnixNano()); s.Asked > p.since.UnixNano() &&
			(*first == 0 || took < *first) {
			*first = took
		}
	}
}

// since sets the probe.
func (f *fleet) since(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probe = probe{since: at}
}

func (f *fleet) probed() probe {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.probe
}

// allow lets operations fail in a window, of a place or of all.
func (f *fleet) allow(at int, from, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allowed = append(f.allowed, allowance{at, from, until})
}

// unexpected are the failures that no allowance covers. What is allowed is counted and forgotten.
func (f *fleet) unexpected() (bad []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.failures {
		ok := false
		for _, a := range f.allowed {
			ok = ok || (a.place < 0 || a.place == m.place) && m.Ended.After(a.from) &&
				m.Began.Before(a.until)
		}
		if ok {
			f.expected++
			continue
		}
		bad = append(bad, fmt.Sprintf("%s of %s, after %v: %s", m.Ended.Format(clock), m.process,
			m.Ended.Sub(m.Began).Round(time.Millisecond), m.Error))
	}
	f.failures = nil
	return bad
}

// forgetCalms is for before the end of a calm.
func (f *fleet) forgetCalms() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.calms)
}

// calmsTold: all have said how the calm was.
func (f *fleet) calmsTold() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calms) == len(f.places)
}

// outOfTurn is who was not served in turn in the last calm. Processes that opened a connection in
// it are not judged: who opens has had his turn, and is overtaken while he connects.
func (f *fleet) outOfTurn(opened map[string]bool) (passed []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, said := range f.calms {
		if opened[name] {
			continue
		}
		f.inTurn += said.Callers
		for _, text := range said.Passed {
			passed = append(passed, name+": "+text)
		}
	}
	return passed
}

func (f *fleet) tell(command string) {
	f.t.Helper()
	for _, p := range f.places {
		p.process.w.tell(f.t, command)
	}
}

// signal sends a signal to a process, by its number.
func (p *process) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.w.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("%v to %s: %v\n%s", sig, p.name, err, p.stderr)
	}
}

// leaves ends a process in good order.
func (f *fleet) leaves(at int) {
	f.t.Helper()
	p := f.places[at].process
	p.w.tell(f.t, end)
	f.ended(p)
}

// ended waits for a process that was told to end. It must have gone well, and left nothing.
func (f *fleet) ended(p *process) {
	f.t.Helper()
	const patience = time.Minute
	select {
	case o, ok := <-p.w.out:
		if !ok {
			f.t.Fatalf("%s ended without a word:\n%s", p.name, p.stderr)
		}
		if o.Goroutines > 0 {
			f.t.Errorf("%s: %d goroutines are left after all was closed:\n%s", p.name, o.Goroutines,
				o.Stacks)
		}
	case <-time.After(patience):
		p.signal(f.t, syscall.SIGQUIT)
		<-p.w.out
		f.t.Fatalf("%s was told to end, and has not for %v:\n%s", p.name, patience, p.stderr)
	}
}

// redisProxies does something to what lies between a place, or all (-1), and Redis.
func (f *fleet) redisProxies(at int, what func(*throwaway.Proxy)) {
	for i, p := range f.places {
		if at < 0 || at == i {
			what(p.redis)
		}
	}
}

func (f *fleet) postgresProxies(at int, what func(*throwaway.Proxy)) {
	for i, p := range f.places {
		if at < 0 || at == i {
			what(p.front)
			what(p.postgres)
		}
	}
}

// logs are the last words of all processes.
func (f *fleet) logs() string {
	var text strings.Builder
	for _, p := range f.places {
		fmt.Fprintf(&text, "--- %s:\n%s\n", p.process.name, p.process.stderr)
	}
	return text.String()
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailMost = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailMost; over > 0 {
		t.b = t.b[:copy(t.b, t.b[over:])]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.b), []byte("\n"))
	const most = 60
	return string(bytes.Join(lines[max(0, len(lines)-most):], []byte("\n")))
}
