package show

import (
	"fmt"
	"io"
	"os"
	"time"
)

// StatusLine shows progress: one line that changes on a terminal, a line each second elsewhere.
type StatusLine struct {
	out      io.Writer
	terminal bool
	next     time.Duration
}

// NewStatusLine returns a StatusLine that writes to out.
func NewStatusLine(out io.Writer) *StatusLine {
	l := &StatusLine{out: out, next: time.Second}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		l.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return l
}

// Show shows text, which describes the given time since the start of the run.
func (l *StatusLine) Show(at time.Duration, text string) {
	if l.terminal {
		fmt.Fprintf(l.out, "\r%s\x1b[K", text) // the sequence clears the rest of a longer line
		return
	}
	if at >= l.next {
		l.next += time.Second
		fmt.Fprintln(l.out, text)
	}
}

// End removes the line.
func (l *StatusLine) End() {
	if l.terminal {
		fmt.Fprint(l.out, "\r\x1b[K")
	}
}
