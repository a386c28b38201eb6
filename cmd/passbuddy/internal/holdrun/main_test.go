//go:build unix

package holdrun

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/semaphore"
)

// asTool makes the tests' program `passbuddy`.
const asTool = "HOLDRUN_TEST_AS_TOOL"

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == GuardCommand:
		os.Exit(RunGuard(os.Args[2:]))
	case os.Getenv(asTool) != "":
		os.Exit(tool())
	}
	os.Exit(m.Run())
}

// tool is a main for this command alone.
func tool() int {
	var t target.Target
	root := &cobra.Command{Use: "passbuddy", SilenceUsage: true, SilenceErrors: true}
	t.AddFlags(root.PersistentFlags())
	root.AddCommand(NewCommand(&t))
	root.SetContext(context.Background())
	err := root.Execute()
	if err != nil && err.Error() != "" {
		fmt.Fprintln(os.Stderr, "passbuddy:", err)
	}
	return exit.Code(err)
}

// fleet is a Redis, and the session of a Go process.
type fleet struct {
	t     *testing.T
	redis *miniredis.Miniredis
	url   string
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	r := miniredis.RunT(t)
	return &fleet{t, r, "redis://" + r.Addr()}
}

// join adds a session.
func (f *fleet) join(capacity int) *semaphore.Semaphore {
	f.t.Helper()
	sem, err := semaphore.Open(f.t.Context(), f.url, semaphore.Config{
		Capacity: capacity, TTL: time.Minute, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = sem.Close() })
	return sem
}

func (f *fleet) snapshot() semaphore.Snapshot {
	f.t.Helper()
	client, err := (&target.Target{RedisURL: f.url}).Client()
	if err != nil {
		f.t.Fatal(err)
	}
	defer client.Close()
	i, err := semaphore.NewInspector(client, "", "")
	if err != nil {
		f.t.Fatal(err)
	}
	now, err := i.Snapshot(context.Background())
	if err != nil {
		f.t.Fatal(err)
	}
	return now
}

// run is `passbuddy run`, under way.
type run struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    lines
	ended  chan struct{}
	code   int
	signal syscall.Signal // that ended it, or 0
}

// start runs the tool with these arguments of `run`.
func (f *fleet) start(args ...string) *run {
	f.t.Helper()
	return startTool(f.t, f.url, args...)
}

func startTool(t *testing.T, redisURL string, args ...string) *run {
	t.Helper()
	r := &run{t: t, ended: make(chan struct{})}
	r.cmd = exec.Command(os.Args[0], append([]string{"run"}, args...)...)
	r.cmd.Env = append(os.Environ(), asTool+"=1", target.RedisEnv+"="+redisURL)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	r.cmd.WaitDelay = 5 * time.Second
	var err error
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.ended)
		err := r.cmd.Wait()
		if state := r.cmd.ProcessState; state != nil {
			status := state.Sys().(syscall.WaitStatus)
			r.code = status.ExitStatus()
			if status.Signaled() {
				r.signal = status.Signal()
			}
		} else {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.ended
	})
	return r
}

// says waits for a line that begins with a word, and returns the rest of it.
func (r *run) says(word string) string {
	r.t.Helper()
	rest := ""
	eventually(r.t, patience, func() (bool, string) {
		for line := range strings.Lines(r.out.String()) {
			if after, ok := strings.CutPrefix(line, word); ok && strings.HasSuffix(line, "\n") {
				rest = strings.TrimSpace(after)
				return true, ""
			}
		}
		return false, fmt.Sprintf("no %q in %q", word, r.out.String())
	})
	return rest
}

// ends waits for the end, and checks the exit code.
func (r *run) ends(code int) string {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(2 * patience):
		r.t.Fatalf("it does not end; it said %q", r.out.String())
	}
	if r.code != code {
		r.t.Errorf("exit code %d (signal %d), want %d; it said %q", r.code, r.signal, code,
			r.out.String())
	}
	return r.out.String()
}

// lines holds the output of a process.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// patience is how long a test waits for what other processes do, on a machine that starves.
const patience = 30 * time.Second

// eventually fails unless ok becomes true in time. It polls, because ok depends on other processes.
func eventually(t *testing.T, limit time.Duration, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		late := time.Now().After(deadline) // ok is asked once more: the machine may stand still
		yes, state := ok()
		if yes {
			return
		}
		if late {
			t.Fatalf("after %v: %s", limit, state)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// gone waits for the end of a process.
func gone(t *testing.T, what, pid string, limit time.Duration) {
	t.Helper()
	var id int
	if _, err := fmt.Sscan(pid, &id); err != nil {
		t.Fatalf("%s: pid %q: %v", what, pid, err)
	}
	eventually(t, limit, func() (bool, string) {
		return errors.Is(syscall.Kill(id, 0), syscall.ESRCH) || zombie(id),
			fmt.Sprintf("%s, process %d, lives", what, id)
	})
}

// zombie reports whether a process has ended, and only its parent has not waited for it yet.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}
