//go:build unix

package holdrun

import (
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
)

func TestExitCodeIsTheCommands(t *testing.T) {
	f := newFleet(t)
	f.join(5)
	notExecutable := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(notExecutable, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	notProgram := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(notProgram, []byte("text"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"--", "true"}, 0},
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"--", "sh", "-c", "kill -9 $$"}, exit.Signal + 9},
		{[]string{"--", "sh", "-c", "kill -TERM $$"}, exit.Signal + 15},
		{[]string{"--", "no-such-command"}, exit.NotFound},
		{[]string{"--", notExecutable}, exit.CannotRun},
		{[]string{"--", notProgram}, exit.CannotRun},
		{[]string{"-n", "0", "--", "true"}, exit.Usage},
		{[]string{"--wait", "-1s", "--", "true"}, exit.Usage},
		{[]string{"--capacity", "2000000", "--", "true"}, exit.Usage},
		{[]string{"-n", "3", "--capacity", "2", "--", "true"}, exit.Usage},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			(&fleet{t, f.redis, f.url}).start(append([]string{"--linger", "0"}, c.args...)...).ends(c.want)
		})
	}
	if now := f.snapshot(); now.Held != 0 || len(now.Sessions) != 1 {
		t.Errorf("%d held, %d sessions at the end", now.Held, len(now.Sessions))
	}
}

func TestPermitsAreHeldWhileTheCommandRuns(t *testing.T) {
	f := newFleet(t)
	f.join(5)
	r := f.start("-n", "3", "--", "sh", "-c", "echo ready; cat")
	r.says("ready")
	now := f.snapshot()
	if now.Held != 3 || now.Capacity != 5 {
		t.Errorf("%d held, capacity %d", now.Held, now.Capacity)
	}
	if len(now.Holders) != 1 || !strings.Contains(now.Holders[0].Owner, "/passbuddy-run(sh)/") {
		t.Errorf("holders: %+v", now.Holders)
	}
	_, _ = r.stdin.Write([]byte("passed through\n"))
	_ = r.stdin.Close()
	if out := r.ends(0); !strings.Contains(out, "passed through") {
		t.Errorf("it said %q", out)
	}
	if now := f.snapshot(); now.Held != 0 {
		t.Errorf("%d held", now.Held)
	}
}

// The permits outlive the command by the time that its backends may take.
func TestLinger(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.join(5)
	r := f.start("--linger", "1s", "--", "sh", "-c", "echo ready; cat")
	r.says("ready")
	_ = r.stdin.Close()
	ended := time.Now()
	r.ends(0)
	if took := time.Since(ended); took < time.Second {
		t.Errorf("the permits were given back after %v", took)
	}
}

func TestNoPermit(t *testing.T) {
	f := newFleet(t)
	sem := f.join(2)
	if _, err := sem.AcquireN(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for _, wait := range []string{"0", "300ms"} {
		out := f.start("--wait", wait, "--", "echo", "it ran").ends(exit.NoPermit)
		if strings.Contains(out, "it ran") || !strings.Contains(out, "passbuddy-semaphore") {
			t.Errorf("--wait %s: it said %q", wait, out)
		}
	}
	// More than there will ever be is refused at once.
	began := time.Now()
	f.start("-n", "3", "--wait", "1m", "--", "true").ends(exit.NoPermit)
	if took := time.Since(began); took > patience {
		t.Errorf("refused after %v", took)
	}
	if now := f.snapshot(); now.Held != 2 || len(now.Waiters) != 0 || len(now.Sessions) != 1 {
		t.Errorf("%d held, %d waiters, %d sessions", now.Held, len(now.Waiters), len(now.Sessions))
	}
}

// A try for several permits gets all or none, in one step.
func TestTrySeveral(t *testing.T) {
	f := newFleet(t)
	sem := f.join(5)
	if _, err := sem.AcquireN(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	f.start("--wait", "0", "-n", "4", "--", "true").ends(exit.NoPermit)
	f.start("--wait", "0", "-n", "3", "--", "true").ends(0)
}

func TestWaitsForPermits(t *testing.T) {
	f := newFleet(t)
	sem := f.join(2)
	permits, err := sem.AcquireN(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	r := f.start("-n", "2", "--wait", "1m", "--", "echo", "it ran")
	eventually(t, patience, func() (bool, string) {
		return len(f.snapshot().Waiters) == 1, "it does not wait"
	})
	for _, p := range permits {
		if err := p.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if out := r.ends(0); !strings.Contains(out, "it ran") {
		t.Errorf("it said %q", out)
	}
}

func TestSignalEndsTheWait(t *testing.T) {
	f := newFleet(t)
	sem := f.join(1)
	if _, err := sem.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := f.start("--wait", "1m", "--", "echo", "it ran")
	eventually(t, patience, func() (bool, string) {
		return len(f.snapshot().Waiters) == 1, "it does not wait"
	})
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	if out := r.ends(exit.Signal + int(syscall.SIGTERM)); out != "" {
		t.Errorf("it said %q", out)
	}
	if now := f.snapshot(); len(now.Waiters) != 0 || len(now.Sessions) != 1 {
		t.Errorf("%d waiters, %d sessions", len(now.Waiters), len(now.Sessions))
	}
}

func TestRedisIsAway(t *testing.T) {
	r := startTool(t, "redis://:secret@127.0.0.1:1/0", "--", "echo", "it ran")
	if out := r.ends(exit.Unavailable); strings.Contains(out, "it ran") ||
		strings.Contains(out, "secret") {
		t.Errorf("it said %q", out)
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.join(5)
	// The shell runs a trap when its child has ended, and wait lets it do so at once.
	r := f.start("--", "sh", "-c", `
		for s in INT HUP QUIT USR1 USR2 WINCH; do trap "echo got $s" $s; done
		trap 'exit 3' TERM
		echo ready
		while :; do sleep 0.05 & wait; done`)
	r.says("ready")
	for _, s := range []struct {
		name   string
		signal syscall.Signal
	}{
		{"INT", syscall.SIGINT}, {"HUP", syscall.SIGHUP}, {"QUIT", syscall.SIGQUIT},
		{"USR1", syscall.SIGUSR1}, {"USR2", syscall.SIGUSR2}, {"WINCH", syscall.SIGWINCH},
	} {
		if signal.Ignored(s.signal) {
			continue // nohup ignores HUP, and a command that it starts does, too
		}
		_ = r.cmd.Process.Signal(s.signal)
		r.says("got " + s.name)
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	r.ends(3)
}

// A command that a signal of the user's has ended: 128+n, as a shell says it.
func TestSignalThatEndsTheCommand(t *testing.T) {
	f := newFleet(t)
	f.join(5)
	r := f.start("--", "sh", "-c", "echo ready; exec sleep 100")
	r.says("ready")
	_ = r.cmd.Process.Signal(syscall.SIGINT)
	r.ends(exit.Signal + int(syscall.SIGINT))
}

// Processes that the command leaves behind could be connected: they end before the permits are
// given back.
func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.join(5)
	r := f.start("--linger", "0", "--", "sh", "-c",
		`trap "" TERM; sleep 100 >/dev/null 2>&1 & echo pid $!; exit 5`)
	r.ends(5)
	gone(t, "the background child", r.says("pid "), 0)
	if now := f.snapshot(); now.Held != 0 {
		t.Errorf("%d held", now.Held)
	}
}
