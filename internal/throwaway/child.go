package throwaway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
)

const (
	// stopGrace is how long a server may take to end after the signal, before it is killed.
	stopGrace = 10 * time.Second
	// treeGrace is how long the server's own children may outlive it. PostgreSQL's backends notice
	// the death of their postmaster and end within milliseconds.
	treeGrace = 5 * time.Second
	// startTimeout bounds a start whose context has no earlier deadline.
	startTimeout = 60 * time.Second
	tailLines    = 40
)

// child is a server process, from its start until it and its own children are gone.
type child struct {
	cmd *exec.Cmd
	out *output
	// gone is closed when the process is reaped and its output pipe has no writer left.
	gone chan struct{}
	err  error // how it ended; written before gone is closed

	frozen []int // children that were paused with it; guarded by the server's mu
}

// spawn starts cmd. The child is ready when it has written marker.
func spawn(cmd *exec.Cmd, marker string) (*child, error) {
	c := &child{cmd: cmd, out: newOutput(marker), gone: make(chan struct{})}
	// One writer for both makes exec use one pipe. The server's children inherit it, and Wait reads
	// to its end. So the end of Wait shows that the whole tree is gone and not just its root.
	cmd.Stdout, cmd.Stderr = c.out, c.out
	cmd.WaitDelay = treeGrace

	started := make(chan error)
	go func() {
		// The kernel sends the parent-death signal when the thread that forked the child ends, not
		// the process (go.dev/issue/27505). So this thread is kept until the child is reaped.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		c.err = cmd.Wait()
		close(c.gone)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("throwaway: start %s: %w", cmd.Path, err)
	}
	return c, nil
}

// awaitReady waits for the marker. When it returns an error, the child has ended.
func (c *child) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-c.out.ready:
		return nil
	case <-c.gone:
		if c.out.contains("Address already in use") {
			return errPortTaken
		}
		if c.out.contains("pre-existing shared memory block") {
			return errOldBackends
		}
		return fmt.Errorf("throwaway: %s ended at its start: %w; it said:\n%s", c.cmd.Path,
			c.exit(), c.out.String())
	case <-ctx.Done():
		c.end(os.Kill)
		return fmt.Errorf("throwaway: %s not ready in time: %w; it said:\n%s", c.cmd.Path,
			ctx.Err(), c.out.String())
	}
}

// end sends sig and waits until the process tree is gone. After stopGrace it sends SIGKILL. For a
// child that is gone, end does nothing: a reaped process is never signalled, because its id may be
// reused.
func (c *child) end(sig os.Signal) {
	select {
	case <-c.gone:
		return
	default:
	}
	_ = c.signal(sig) // This fails only when the process already ended, and then gone is closed.
	// A paused process would not handle the signal, and its paused children would not notice its
	// death.
	_ = c.thaw()
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-c.gone:
		return
	case <-timer.C:
	}
	_ = c.cmd.Process.Kill()
	<-c.gone
}

// exit returns how a child that is gone ended.
func (c *child) exit() error {
	if c.err == nil {
		return errors.New("exit status 0")
	}
	return c.err
}

// output keeps the last lines that a server wrote and watches for the one that says it is ready.
type output struct {
	marker []byte
	ready  chan struct{}

	mu      sync.Mutex
	seen    bool
	lines   []string
	partial []byte
}

func newOutput(marker string) *output {
	return &output{marker: []byte(marker), ready: make(chan struct{})}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.partial = append(o.partial, p...)
	for {
		line, rest, found := bytes.Cut(o.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		if !o.seen && bytes.Contains(line, o.marker) {
			o.seen = true
			close(o.ready)
		}
		if len(o.lines) == tailLines {
			o.lines = o.lines[:copy(o.lines, o.lines[1:])]
		}
		o.lines = append(o.lines, string(line))
		o.partial = append(o.partial[:0], rest...)
	}
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines, "\n")
}

func (o *output) contains(s string) bool { return strings.Contains(o.String(), s) }
