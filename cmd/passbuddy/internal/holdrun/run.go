//go:build unix

package holdrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/membership"
	"github.com/passbuddy/passbuddy/semaphore"
)

// waitNotice is after how long a user at a terminal is told what is waited for.
const waitNotice = 2 * time.Second

// Run acquires the permits, runs the command with these files, and returns the exit code of this
// process. An error is to be shown. ctx bounds the wait for permits only: the command is ended by
// signals.
func Run(ctx context.Context, o Options, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	if err := o.validate(); err != nil {
		return exit.Usage, err
	}
	path, err := exec.LookPath(o.Command[0])
	if err != nil {
		return notRun(err), err
	}
	say := func(format string, args ...any) {
		fmt.Fprintf(stderr, "passbuddy run: "+format+"\n", args...)
	}
	signals, stop := catch()
	defer stop()
	// The guard starts while we join.
	guards := make(chan started, 1)
	go func() {
		g, err := startGuard(o.grace())
		guards <- started{g, err}
	}()
	held, err := interruptible(ctx, signals, func(ctx context.Context) (*hold, error) {
		if onTerminal(stderr) {
			notice := time.AfterFunc(waitNotice, func() { say("waiting for %d of %q", o.N, &o.Target) })
			defer notice.Stop()
		}
		return acquire(ctx, o, say)
	})
	g := <-guards
	if g.err == nil {
		defer g.end()
	}
	if held != nil && (err != nil || g.err != nil) {
		_ = held.release(0)
	}
	if err != nil {
		return refused(err)
	}
	if g.err != nil {
		return exit.Failed, g.err
	}
	r := &running{o: o, held: held, guard: g.guard, signals: signals, say: say}
	code, err := r.run(path, stdin, stdout, stderr)
	if r.interrupted {
		interruptGroup()
	}
	return code, err
}

// started holds the results of startGuard.
type started struct {
	*guard
	err error
}

// notRun is the exit code for a command that LookPath, or the kernel, refuses.
func notRun(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exit.NotFound
	}
	return exit.CannotRun
}

// refused is how this process ends if no permit was granted.
func refused(err error) (int, error) {
	var why interrupted
	switch {
	case errors.As(err, &why):
		return exit.Signal + int(why.signal), nil
	case errors.Is(err, membership.ErrNoCapacity):
		return exit.Usage, err
	case errors.Is(err, semaphore.ErrUnavailable):
		return exit.Unavailable, err
	case errors.Is(err, semaphore.ErrCapacity):
		return exit.NoPermit, err
	}
	return exit.Failed, err
}

// running is the time in which the command runs.
type running struct {
	o       Options
	held    *hold
	guard   *guard
	signals <-chan os.Signal
	say     func(string, ...any)

	terminal *terminal
	// passedOn: a SIGINT came from elsewhere than the keyboard. interrupted: the keyboard's has
	// ended the command.
	passedOn, interrupted bool
}

// run runs the command, and gives the permits back when nothing is left of it.
func (r *running) run(path string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	linger := time.Duration(0)
	defer func() {
		if err := r.held.release(linger); err != nil {
			r.say("Redis did not answer; the permits end with their leases, within %v", r.o.TTL)
		}
	}()
	if !r.held.held() { // this process was stopped meanwhile
		return exit.Lost, fmt.Errorf("the command was not started: %w", semaphore.ErrLost)
	}
	adoptOrphans()
	// Before the command starts: from its first instruction it may use the terminal.
	r.terminal = openTerminal(r.guard.group())
	defer r.terminal.close()
	r.terminal.give()
	p, err := start(path, r.o.Command, r.guard.group(), stdin, stdout, stderr)
	undo := neverStop()
	defer undo()
	defer r.terminal.takeBack()
	if err != nil {
		return notRun(err), err
	}
	status, lost := r.follow(p)
	r.terminal.takeBack() // now, for the user; what follows takes some time
	r.guard.end()
	if !p.clear(r.o.grace()) {
		r.say("processes that the command has left behind cannot be ended; they may be connected")
	}
	p.finish()
	if lost {
		return exit.Lost, fmt.Errorf("%s was ended: %w", r.o.Command[0], semaphore.ErrLost)
	}
	linger = r.o.Linger
	if status.Signaled() {
		r.interrupted = status.Signal() == syscall.SIGINT && r.terminal != nil &&
			r.terminal.given && !r.passedOn
		return exit.Signal + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// follow passes signals on until the command has ended, and ends it if a lease is lost.
func (r *running) follow(p *program) (status syscall.WaitStatus, lost bool) {
	losing := r.held.lost
	var kill <-chan time.Time
	told := false
	for {
		select {
		case status = <-p.changes:
			if !status.Stopped() {
				return status, lost
			}
			resume, refuse := r.terminal.stopped(status.StopSignal())
			if refuse && !told {
				told = true
				r.say("the command cannot be suspended while it holds a permit")
			}
			if resume || lost {
				p.resume()
			}
		case s := <-r.signals:
			r.passedOn = r.passedOn || s == syscall.SIGINT
			p.pass(s)
		case <-r.terminal.ticks():
			if r.terminal.askAgain() {
				p.resume()
			}
		case <-losing:
			losing, lost = nil, true
			r.say("the lease is lost: ending the command")
			p.tell(syscall.SIGTERM)
			kill = time.After(r.o.grace())
		case <-kill:
			p.tell(syscall.SIGKILL)
		}
	}
}

func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
