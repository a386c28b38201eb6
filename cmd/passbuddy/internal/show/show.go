// Package show formats figures and progress.
package show

import (
	"fmt"
	"strings"
	"time"
)

// shortLen is the maximum length of Shorten's result, in bytes.
const shortLen = 200

// Shorten returns text as one line of at most 200 bytes.
func Shorten(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > shortLen {
		text = strings.ToValidUTF8(text[:shortLen], "") + "..."
	}
	return text
}

// Thousands groups the digits of n, which must not be negative.
func Thousands(n int64) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// Milliseconds formats d with as many digits as are significant, and below one millisecond in
// microseconds.
func Milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 1:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return Thousands(int64(ms+0.5)) + " ms"
}
