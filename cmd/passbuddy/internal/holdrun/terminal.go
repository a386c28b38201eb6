//go:build unix

package holdrun

import (
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is the controlling terminal. It belongs to one process group, the foreground one: only
// that may read, and only that gets the signals of the keyboard.
type terminal struct {
	fd         int
	own, group int  // ours, and the command's
	given      bool // it was the command's, at some time
	// asked ticks while the command is stopped because it may not use the terminal; else nil. A
	// shell that brings us to the foreground tells us nothing if it believes that we run.
	asked  <-chan time.Time
	ticker *time.Ticker
}

// askEvery is how often we look whether we are in the foreground by now.
const askEvery = 100 * time.Millisecond

// openTerminal returns nil if there is none, as for a service.
func openTerminal(group int) *terminal {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return &terminal{fd: fd, own: unix.Getpgrp(), group: group}
}

// give makes the command's group the foreground one, if ours is it.
func (t *terminal) give() bool {
	if t == nil {
		return false
	}
	now, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	if err != nil || now != t.own || t.set(t.group) != nil {
		return false
	}
	t.given = true
	return true
}

// takeBack makes our group the foreground one again, for what the shell runs next. The signals for
// a background process that changes the terminal must be ignored.
func (t *terminal) takeBack() {
	if t != nil && t.given {
		_ = t.set(t.own)
	}
}

func (t *terminal) set(group int) error {
	return unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, group)
}

func (t *terminal) close() {
	if t != nil {
		t.stopAsking()
		_ = unix.Close(t.fd)
	}
}

// stopped takes note that the command was stopped. It reports whether it is to be continued, and
// whether that is against the user's will.
func (t *terminal) stopped(s syscall.Signal) (resume, refuse bool) {
	switch {
	case t == nil:
	case s == syscall.SIGTSTP && t.given:
		return true, true
	case s == syscall.SIGTTIN, s == syscall.SIGTTOU:
		if t.give() {
			return true, false
		}
		if t.ticker == nil {
			t.ticker = time.NewTicker(askEvery)
			t.asked = t.ticker.C
		}
	}
	return false, false
}

// askAgain is called when asked has ticked. It reports whether the command can be continued now.
func (t *terminal) askAgain() bool {
	if !t.give() {
		return false
	}
	t.stopAsking()
	return true
}

func (t *terminal) stopAsking() {
	if t.ticker != nil {
		t.ticker.Stop()
		t.ticker, t.asked = nil, nil
	}
}

// ticks is asked, for a select.
func (t *terminal) ticks() <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.asked
}

// neverStop has this process go on where a terminal would stop it: it must renew the lease. It is
// called when the command has started, which would inherit that.
func neverStop() (undo func()) {
	stops := []syscall.Signal{syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU}
	var undone []syscall.Signal
	for _, s := range stops {
		if !signal.Ignored(s) {
			signal.Ignore(s)
			undone = append(undone, s)
		}
	}
	return func() {
		for _, s := range undone {
			signal.Reset(s)
		}
	}
}

// interruptGroup does to our own process group what Ctrl-C has done to the command's, so that the
// script that called us ends as well.
func interruptGroup() {
	signal.Reset(syscall.SIGINT)
	_ = syscall.Kill(0, syscall.SIGINT)
}
