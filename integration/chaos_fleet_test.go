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

// This file holds the fleet of a chaos run: six processes, each behind proxies of its own. The run
// replaces those that end.

// process is one process of the fleet. Its name tells its place, and how many processes that place
// had before.
type process struct {
	name   string
	place  int
	w      *worker
	stderr *tail
}

// place is where a process runs. The proxies between it and the servers stay when the process is
// replaced.
type place struct {
	redis, postgres *throwaway.Proxy
	front           *throwaway.Proxy // to Postgres as well: the first host of the process's DSN
	process         *process
	had             int // how many processes it has had
}

type fleet struct {
	t      *testing.T
	job    job // of each process, but for what its place changes
	places []*place

	mu sync.Mutex

	// Guarded by mu.
	grants, checkouts, inTurn int
	failures                  []failure
	allowed                   []allowance
	expected                  int                     // failures that an allowance covers
	calms                     map[string]servedInTurn // by process: its report on the last calm
	probe                     probe
}

type failure struct {
	process string
	place   int
	mishap
}

// An allowance is a window in which operations may fail: those of one place, or of all (-1).
type allowance struct {
	place       int
	from, until time.Time
}

// A probe waits for the first operations that began after a fault.
type probe struct {
	since           time.Time
	grant, checkout time.Duration // time until then; 0: not yet
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
	// This process pauses, and so releases and acquires; but not in a calm, because a moving permit
	// is not in use.
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

// since starts the probe at a time.
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

// allow declares a window in which operations of a place, or of all, may fail.
func (f *fleet) allow(at int, from, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allowed = append(f.allowed, allowance{at, from, until})
}

// unexpected returns the failures that no allowance covers. It counts the allowed ones and forgets
// them.
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

// dropCalmReports drops the reports of an earlier calm, before a calm ends.
func (f *fleet) dropCalmReports() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.calms)
}

// allReported reports whether every process has reported on the calm.
func (f *fleet) allReported() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calms) == len(f.places)
}

// outOfTurn returns the callers that were not served in turn in the last calm. It does not judge
// processes that opened a connection in the calm. A caller that opens a connection has had its
// turn, and others overtake it while it connects.
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

// signal sends a signal to a process, by its process id.
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

// ended waits for a process that was told to end. It must have succeeded, and left nothing.
func (f *fleet) ended(p *process) {
	f.t.Helper()
	const patience = time.Minute
	select {
	case o, ok := <-p.w.out:
		if !ok {
			f.t.Fatalf("%s ended without an outcome:\n%s", p.name, p.stderr)
		}
		if o.Goroutines > 0 {
			f.t.Errorf("%s: %d goroutines are left after all was closed:\n%s", p.name, o.Goroutines,
				o.Stacks)
		}
	case <-time.After(patience):
		p.signal(f.t, syscall.SIGQUIT)
		<-p.w.out
		f.t.Fatalf("%s was told to end, and still runs after %v:\n%s", p.name, patience, p.stderr)
	}
}

// redisProxies applies a function to the proxies between a place, or all (-1), and Redis.
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

// logs returns the last output of all processes.
func (f *fleet) logs() string {
	var text strings.Builder
	for _, p := range f.places {
		fmt.Fprintf(&text, "--- %s:\n%s\n", p.process.name, p.process.stderr)
	}
	return text.String()
}

// tail keeps the end of the text that is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailSize; over > 0 {
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
