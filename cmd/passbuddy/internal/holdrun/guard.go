//go:build unix

package holdrun

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// GuardCommand is the argument with which this program runs as a guard.
const GuardCommand = "run-guard"

// A guard is a process of this program that leads the command's process group. It lives as long as
// the command, and ends the group if this process does not live so long. As its leader lives, no
// other group can have the group's id meanwhile.
type guard struct {
	cmd  *exec.Cmd
	pipe *os.File // its other end is the guard's standard input
}

// startGuard returns once the guard ignores what a terminal could send to its group.
func startGuard(grace time.Duration) (*guard, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	input, pipe, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer input.Close()
	cmd := exec.Command(self, GuardCommand, grace.String())
	cmd.Stdin = input
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ready, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		_ = pipe.Close()
		return nil, fmt.Errorf("start the guard process: %w", err)
	}
	g := &guard{cmd, pipe}
	if _, err := io.ReadFull(ready, make([]byte, len(guardReady))); err != nil {
		g.end()
		return nil, fmt.Errorf("the guard process did not start: %w", err)
	}
	return g, nil
}

// group is the process group that it leads.
func (g *guard) group() int { return g.cmd.Process.Pid }

// end ends the guard, which leaves the group alone. It can be called twice.
func (g *guard) end() {
	_, _ = g.pipe.Write([]byte{0})
	_ = g.pipe.Close()
	_ = g.cmd.Wait()
}

const guardReady = "\n"

// RunGuard is the guard's side: its arguments are those behind GuardCommand. It returns the exit
// code of the process.
func RunGuard(args []string) int {
	if len(args) != 1 || syscall.Getpgrp() != os.Getpid() {
		fmt.Fprintln(os.Stderr, "passbuddy: "+GuardCommand+" is for `passbuddy run` to start")
		return 2
	}
	grace, err := time.ParseDuration(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "passbuddy: "+GuardCommand+":", err)
		return 2
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGPIPE,
		syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	fmt.Print(guardReady)
	if n, _ := os.Stdin.Read(make([]byte, 1)); n > 0 {
		return 0
	}
	// The process that renews the lease has ended.
	_ = syscall.Kill(0, syscall.SIGTERM)
	_ = syscall.Kill(0, syscall.SIGCONT) // one that is stopped would not get the other
	time.Sleep(grace)
	_ = syscall.Kill(0, syscall.SIGKILL)
	return 0
}
