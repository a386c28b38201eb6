package throwaway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

var errNotRunning = errors.New("throwaway: the server is not running")

// Pause freezes the server with SIGSTOP until Continue: its port accepts, but the server sends
// nothing. Kill, Restart and Stop work on a paused server. The second and later calls do nothing.
func (r *Redis) Pause(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return errNotRunning
	}
	if err := r.server.freeze(ctx); err != nil {
		return err
	}
	r.paused = true
	return nil
}

// Continue lets a paused server resume. On a server that is not paused it does nothing.
func (r *Redis) Continue() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return errNotRunning
	}
	r.paused = false
	return r.server.thaw()
}

// Pause freezes the server and all its backends with SIGSTOP until Continue, as a host that hangs
// would. Kill, Restart and Stop work on a paused server. Linux only. The second and later calls do
// nothing.
func (p *Postgres) Pause(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server == nil {
		return errNotRunning
	}
	if err := p.server.freeze(ctx); err != nil {
		return err
	}
	// A frozen server starts no more children, so these are all.
	children, err := p.server.children()
	if err != nil {
		return errors.Join(err, p.server.thaw())
	}
	p.server.frozen = children
	for _, pid := range children {
		if err := freeze(ctx, pid); err != nil {
			return errors.Join(err, p.server.thaw())
		}
	}
	return nil
}

// Continue lets a paused server resume. On a server that is not paused it does nothing.
func (p *Postgres) Continue() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server == nil {
		return errNotRunning
	}
	return p.server.thaw()
}

// freeze stops the process, not its children.
func (c *child) freeze(ctx context.Context) error {
	if err := c.signal(sigPause); err != nil {
		return err
	}
	return awaitStopped(ctx, c.pid())
}

// thaw undoes the pause of the process and of its children. A frozen child does not end, and a
// killed one stays a zombie until its frozen parent reaps it. So the child's id is not reused.
func (c *child) thaw() error {
	var errs []error
	for _, pid := range c.frozen {
		errs = append(errs, signalTo(pid, sigContinue))
	}
	c.frozen = nil
	return errors.Join(append(errs, c.signal(sigContinue))...)
}

// signal does nothing to a process that was reaped: its id may belong to another one.
func (c *child) signal(sig os.Signal) error {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("throwaway: %v to %s: %w", sig, c.cmd.Path, err)
	}
	return nil
}

func freeze(ctx context.Context, pid int) error {
	if err := signalTo(pid, sigPause); err != nil {
		return err
	}
	return awaitStopped(ctx, pid)
}

// awaitStopped returns when pid has stopped: after the signal a process still runs some
// instructions.
func awaitStopped(ctx context.Context, pid int) error {
	return await(ctx, fmt.Sprintf("pause of process %d", pid), func(context.Context) string {
		state, _, err := processState(pid)
		switch {
		case errors.Is(err, os.ErrNotExist):
			// The process ended; or there is no /proc here, and the signal must suffice.
			return ""
		case err != nil:
			return err.Error()
		case !strings.ContainsAny(state, "TtZX"):
			return "its state is " + state
		}
		return ""
	})
}

func signalTo(pid int, sig os.Signal) error {
	process, err := os.FindProcess(pid)
	if err != nil {
		return fmt.Errorf("throwaway: process %d: %w", pid, err)
	}
	defer process.Release()
	if err := process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) &&
		!errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("throwaway: process %d: %w", pid, err)
	}
	return nil
}

// children returns the processes whose parent is c.
func (c *child) children() ([]int, error) {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	if len(paths) == 0 {
		return nil, errors.New("throwaway: there is no /proc to find a server's children")
	}
	var pids []int
	for _, path := range paths {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		if _, parent, err := processState(pid); err == nil && parent == c.pid() {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// processState reads a process's state and parent. The line begins "pid (name) state ppid", and the
// name may hold any character, parentheses too.
func processState(pid int) (state string, parent int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 2 {
		return "", 0, fmt.Errorf("throwaway: /proc/%d/stat says %q", pid, text)
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err
}
