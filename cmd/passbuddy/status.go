package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// statusLine shows progress: one line that changes on a terminal, a line each second elsewhere.
type statusLine struct {
	out      io.Writer
	terminal bool
	next     time.Duration
}

func newStatusLine(out io.Writer) *statusLine {
	l := &statusLine{out: out, next: time.Second}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		l.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return l
}

// show shows text, which is of the given time since the start of the run.
func (l *statusLine) show(at time.Duration, text string) {
	if l.terminal {
		fmt.Fprintf(l.out, "\r%s\x1b[K", text) // the sequence clears what a longer line left
		return
	}
	if at >= l.next {
		l.next += time.Second
		fmt.Fprintln(l.out, text)
	}
}

func (l *statusLine) end() {
	if l.terminal {
		fmt.Fprint(l.out, "\r\x1b[K")
	}
}
