// Package screen shows a fleet in text: what `passbuddy status` prints, and parts of what `passbuddy
// top` shows. It knows no terminal: it makes lines of a width, each in one style.
package screen

import (
	"strings"
	"unicode"

	"github.com/charmbracelet/x/ansi"
)

// A Style is how a line is shown. Each also has a sign or a word in the text: colour only repeats.
type Style int

// The styles.
const (
	Plain Style = iota
	Head        // a heading
	Dim
	Good
	Look // worth a look
	Bad
	Command
)

// A Line is one line of a screen, without escape sequences.
type Line struct {
	Text  string
	Style Style
}

// sgr are the styles as terminals know them: the 16 colours, which suit light and dark.
var sgr = map[Style]string{
	Head: "1", Dim: "2", Good: "32", Look: "33", Bad: "1;31", Command: "36",
}

// Paint is the line as a terminal shows it.
func (l Line) Paint() string {
	code := sgr[l.Style]
	if code == "" || l.Text == "" {
		return l.Text
	}
	return "\x1b[" + code + "m" + l.Text + "\x1b[0m"
}

// String joins lines into a text, with colours or without.
func String(lines []Line, colours bool) string {
	var b strings.Builder
	for _, l := range lines {
		if colours {
			b.WriteString(l.Paint())
		} else {
			b.WriteString(l.Text)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Clean makes a text that others wrote fit for a terminal: no control characters, so no escape
// sequences, and none that reorder or hide text.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Zl, r),
			unicode.Is(unicode.Zp, r), r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, s)
}

// CleanLines is Clean for a text of several lines.
func CleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = Clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// Cut shortens a text to a width, and says so by an ellipsis.
func Cut(s string, width int) string { return ansi.Truncate(s, max(0, width), "…") }

// Fit cuts or pads a text to exactly a width.
func Fit(s string, width int) string {
	s = Cut(s, width)
	return s + strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
}

// Right is a text at the right end of a width.
func Right(s string, width int) string {
	s = Cut(s, width)
	return strings.Repeat(" ", max(0, width-ansi.StringWidth(s))) + s
}

// Wrap breaks a text at spaces into lines of a width, `most` of them at most; 0 is any number.
func Wrap(s string, width, most int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && ansi.StringWidth(line)+1+ansi.StringWidth(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	lines = append(lines, line) // a word that is longer than the width is cut by who shows it
	if most > 0 && len(lines) > most {
		rest := strings.Join(lines[most-1:], " ")
		lines = append(lines[:most-1], Cut(rest, max(10, width)))
	}
	return lines
}
