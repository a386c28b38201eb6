// Package exit has the exit codes of the commands, and the error that carries one.
package exit

import "errors"

// The exit codes that scripts can rely on. Where a command runs another program, that program's
// code is passed on, 128+n if signal n ended it. So the codes for a permit are those of sysexits.h,
// which few programs use, and the two for a program that does not start are the shells'.
const (
	OK          = 0
	Failed      = 1
	Usage       = 2
	Trouble     = 3  // doctor, or status --check, has found what is wrong
	Declined    = 4  // the user said no, or --yes was missing: nothing was changed
	StillHeld   = 5  // a drain or an eviction ended with permits still held
	Unavailable = 69 // EX_UNAVAILABLE: Redis cannot be asked
	Lost        = 74 // EX_IOERR: the lease was lost, and the program was ended for that
	NoPermit    = 75 // EX_TEMPFAIL: no permit within the wait, nothing was run
	CannotRun   = 126
	NotFound    = 127
	Interrupted = 130 // by Ctrl-C, or told to end
	Signal      = 128 // plus the signal's number
)

// An Error ends the command with Code. It shows Err, or nothing if that is nil.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// With returns the error that ends a command with code, showing err; nil if there is nothing to
// say: code is OK and err is nil.
func With(code int, err error) error {
	if code == OK && err == nil {
		return nil
	}
	return &Error{Code: code, Err: err}
}

// Code returns the code that a command ends with when it returned err.
func Code(err error) int {
	var e *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.Code
	}
	return Failed
}
