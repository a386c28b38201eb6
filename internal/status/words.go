package status

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/passbuddy/passbuddy/semaphore"
)

// Span is a time in words of at most two units, as "840ms", "4.8s", "14m" or "3h05m".
func Span(seconds float64) string {
	switch {
	case seconds < 0:
		return "0s"
	case seconds > 0 && seconds < 0.0001:
		return "<0.1ms"
	case seconds > 0 && seconds < 0.00995:
		return fmt.Sprintf("%.1fms", seconds*1000)
	case seconds < 0.9995:
		return fmt.Sprintf("%.0fms", seconds*1000)
	case seconds < 9.95:
		return fmt.Sprintf("%.1fs", seconds)
	case seconds < 119.5:
		return fmt.Sprintf("%.0fs", seconds)
	case seconds < 3600:
		return fmt.Sprintf("%.0fm", seconds/60)
	case seconds < 48*3600:
		minutes := int(seconds / 60)
		return fmt.Sprintf("%dh%02dm", minutes/60, minutes%60)
	}
	return fmt.Sprintf("%.0fd", seconds/86400)
}

// Count is a number with its noun, in the plural unless it is 1.
func Count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "ss"):
		return fmt.Sprintf("%d %ses", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Verb is the form of a verb for a count.
func Verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// Title is a process in words: its owner, and which program that is.
func (p Process) Title() string {
	name, where := p.Owner, ""
	if name == "" {
		name = p.Session
	}
	if p.Host != "" && !strings.Contains(name, p.Host) {
		where = " on " + p.Host
	}
	switch {
	case p.PID == 0, strings.Contains(name, fmt.Sprintf("/%s/%d", p.Program, p.PID)):
		return name // an owner by default says it all
	case p.Program == "":
		return fmt.Sprintf("%s (pid %d%s)", name, p.PID, where)
	}
	return fmt.Sprintf("%s (%s, pid %d%s)", name, p.Program, p.PID, where)
}

// titles are a few processes in words.
func titles(list []Process) string {
	switch {
	case len(list) == 1:
		return list[0].Title()
	case len(list) <= 3:
		names := make([]string, len(list))
		for i, p := range list {
			names[i] = p.Owner
		}
		return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
	}
	if prefix := commonPrefix(list); len(prefix) >= 4 {
		return fmt.Sprintf("%d processes (%s...)", len(list), prefix)
	}
	return fmt.Sprintf("%s, %s and %d more", list[0].Owner, list[1].Owner, len(list)-2)
}

// commonPrefix is the prefix that all owners share.
func commonPrefix(list []Process) string {
	if len(list) == 0 {
		return ""
	}
	prefix := list[0].Owner
	for _, p := range list[1:] {
		for !strings.HasPrefix(p.Owner, prefix) {
			prefix = prefix[:len(prefix)-1]
		}
	}
	return strings.ToValidUTF8(prefix, "")
}

// quoted is the semaphore's name in words.
func (d Document) quoted() string { return fmt.Sprintf("%q", d.Semaphore) }

// Command is a command of the tool for this semaphore, as a shell takes it.
func (d Document) Command(words ...string) string {
	words = append([]string{"passbuddy"}, words...)
	if d.Semaphore != semaphore.DefaultName {
		words = append(words, "--name", d.Semaphore)
	}
	if d.Prefix != semaphore.DefaultPrefix {
		words = append(words, "--prefix", d.Prefix)
	}
	for i := range words {
		words[i] = quote(words[i])
	}
	return strings.Join(words, " ")
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=@%+,-]+$`)

// quote is a word as a POSIX shell takes it.
func quote(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// literal is a text as SQL takes it.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// end sets a stop behind a text that others wrote, if it has none.
func end(text string) string {
	if text == "" || strings.HasSuffix(text, ".") {
		return text
	}
	return text + "."
}
