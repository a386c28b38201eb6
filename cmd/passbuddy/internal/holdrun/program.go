//go:build unix

package holdrun

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

const (
	// outputTimeout is how long output that does not go to a file of ours may take to arrive.
	outputTimeout = time.Second
	leftPoll      = 5 * time.Millisecond
	// killedTimeout is how long a process may take to end after SIGKILL.
	killedTimeout = 2 * time.Second
)

// program is the command, once it runs.
type program struct {
	cmd   *exec.Cmd
	group int
	// changes are the states that it reaches: stopped, any number of times, then ended.
	changes chan syscall.WaitStatus
}

// start runs the command in that process group, whose leader is the guard.
func start(path string, args []string, group int, stdin io.Reader, stdout, stderr io.Writer) (
	*program, error,
) {
	cmd := exec.Command(path)
	cmd.Args = args
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.WaitDelay = outputTimeout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: group}
	endWithParent(cmd.SysProcAttr)
	p := &program{cmd: cmd, group: group, changes: make(chan syscall.WaitStatus, 1)}
	started := make(chan error)
	go func() {
		// The kernel tells the command of the end of the thread that started it, not of the process
		// (go.dev/issue/27505). So this thread stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.follow()
		}
	}()
	return p, <-started
}

// follow sends the command's changes. Cmd.Wait would not tell of a stop.
func (p *program) follow() {
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil: // it is not ours to wait for
			status = syscall.WaitStatus(255 << 8)
		}
		p.changes <- status
		if !status.Stopped() {
			return
		}
	}
}

// pass sends a signal to the command itself.
func (p *program) pass(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// tell sends a signal to the command and all of its group. A stopped process would not get it, and
// is continued.
func (p *program) tell(s syscall.Signal) {
	_ = syscall.Kill(-p.group, s)
	p.pass(s) // it may have left the group
	p.resume()
}

func (p *program) resume() { _ = syscall.Kill(-p.group, syscall.SIGCONT) }

// clear ends what the command has left behind in its group, and reports whether nothing is left. It
// is called when the command and the guard have ended and are waited for.
func (p *program) clear(grace time.Duration) bool {
	const none = syscall.Signal(0)
	left := func(s syscall.Signal) bool {
		if os.Getpid() == 1 {
			// Orphans are our children, and stay in the group until we have waited for them.
			_, _ = syscall.Wait4(-p.group, nil, syscall.WNOHANG, nil)
		}
		return !errors.Is(syscall.Kill(-p.group, s), syscall.ESRCH)
	}
	await := func(limit time.Duration) bool {
		for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(leftPoll) {
			if !left(none) {
				return true
			}
		}
		return !left(none)
	}
	if !left(none) {
		return true
	}
	left(syscall.SIGTERM)
	left(syscall.SIGCONT)
	if await(grace) {
		return true
	}
	left(syscall.SIGKILL)
	return await(killedTimeout)
}

// finish waits for output that is still on its way.
func (p *program) finish() { _ = p.cmd.Wait() } // its error says that follow has waited already
