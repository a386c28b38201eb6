package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
)

const (
	// readyTimeout bounds how long the whole fleet may take to be ready.
	readyTimeout = 30 * time.Second
	// endGrace is how long beyond Config.Drain a worker may take to end after SIGTERM before it
	// gets SIGKILL. It closes its pool meanwhile.
	endGrace = 10 * time.Second
)

// Fleet is a number of worker processes.
type Fleet struct {
	members []*member
	drain   time.Duration // the longest of the workers' drains
}

// member is one worker process, as its parent sees it.
type member struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr *tail
	ready  chan struct{} // closed at the first report, unless it reports an error
	ended  chan struct{} // closed when the process is reaped
	err    error         // how it ended; written before ended is closed

	mu   sync.Mutex
	last Report
}

// Start starts a worker for each Config and waits until all are ready. When it fails, no worker is
// left.
func Start(ctx context.Context, cfgs []Config) (*Fleet, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f := &Fleet{}
	for _, cfg := range cfgs {
		if err := f.add(self, cfg); err != nil {
			f.Kill()
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, m := range f.members {
		if err := m.awaitReady(ctx); err != nil {
			f.Kill()
			return nil, err
		}
	}
	return f, nil
}

// add starts one more worker.
func (f *Fleet) add(program string, cfg Config) error {
	m, err := startMember(program, cfg)
	if err != nil {
		return err
	}
	f.drain = max(f.drain, cfg.Drain+cfg.Closing)
	f.members = append(f.members, m)
	return nil
}

func (m *member) awaitReady(ctx context.Context) error {
	select {
	case <-m.ready:
		return nil
	case <-m.ended:
		return m.failure()
	case <-ctx.Done():
		return fmt.Errorf("the fleet was not ready in time: %w", ctx.Err())
	}
}

func startMember(program string, cfg Config) (*member, error) {
	m := &member{
		cmd:    exec.Command(program, WorkerCommand),
		stderr: &tail{},
		ready:  make(chan struct{}),
		ended:  make(chan struct{}),
	}
	ownGroup(m.cmd)
	m.cmd.Stderr = m.stderr
	stdin, err := m.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	m.stdin = stdin
	go m.follow(stdout)
	if err := json.NewEncoder(stdin).Encode(cfg); err != nil {
		m.kill()
		return nil, fmt.Errorf("configure a worker: %w", err)
	}
	return m, nil
}

// follow reads a worker's reports until it ends.
func (m *member) follow(stdout io.Reader) {
	defer close(m.ended)
	reports := json.NewDecoder(stdout)
	for first := true; ; first = false {
		var r Report
		if err := reports.Decode(&r); err != nil {
			break
		}
		m.mu.Lock()
		m.last = r
		m.mu.Unlock()
		if first && r.Error == "" {
			close(m.ready)
		}
	}
	m.err = m.cmd.Wait()
}

func (m *member) report() Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

// failure returns why a worker that ended did not do its work.
func (m *member) failure() error {
	if reason := m.report().Error; reason != "" {
		return fmt.Errorf("a worker failed: %s", reason)
	}
	return fmt.Errorf("a worker ended without a final report (%v): %s", m.err, m.stderr)
}

func (m *member) kill() {
	_ = m.cmd.Process.Kill() // fails only when it has ended
	<-m.ended
	_ = m.stdin.Close()
}

// Begin lets all workers start at once, and run until Finish.
func (f *Fleet) Begin() error { return f.BeginSpan(Span{}) }

// BeginSpan lets all workers start when s says so. They stop working when it is over.
func (f *Fleet) BeginSpan(s Span) error {
	for _, m := range f.members {
		if err := m.begin(s); err != nil {
			return err
		}
	}
	return nil
}

func (m *member) begin(s Span) error {
	if err := json.NewEncoder(m.stdin).Encode(s); err != nil {
		return fmt.Errorf("start the run: %w", err)
	}
	return nil
}

// PIDs returns the workers' process ids.
func (f *Fleet) PIDs() []int {
	var pids []int
	for _, m := range f.members {
		pids = append(pids, m.cmd.Process.Pid)
	}
	return pids
}

// Counts adds up the workers' latest reports.
func (f *Fleet) Counts() (sum Counts) {
	for _, m := range f.members {
		sum.Add(m.report().Counts)
	}
	return sum
}

// Finish ends the run and returns the workers' final reports, in order. When it returns, no worker
// is left.
func (f *Fleet) Finish() ([]Report, error) {
	for _, m := range f.members {
		// fails only when it has ended, and then it has no final report
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
	}
	grace := time.NewTimer(f.drain + endGrace)
	defer grace.Stop()
	var reports []Report
	var errs []error
	for _, m := range f.members {
		select {
		case <-m.ended:
		case <-grace.C:
			f.Kill() // this one and those after it: all had the same time
		}
		_ = m.stdin.Close()
		if r := m.report(); r.Final {
			reports = append(reports, r)
		} else {
			errs = append(errs, m.failure())
		}
	}
	return reports, errors.Join(errs...)
}

// Kill ends all workers at once. It may be called more than once.
func (f *Fleet) Kill() {
	for _, m := range f.members {
		_ = m.cmd.Process.Kill()
	}
	for _, m := range f.members {
		m.kill()
	}
}

// tail keeps the end of what a worker wrote to stderr.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if extra := len(t.text) - 4096; extra > 0 {
		t.text = t.text[extra:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return show.Shorten(string(t.text))
}
