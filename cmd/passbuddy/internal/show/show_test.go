package show

import (
	"strings"
	"testing"
	"time"
)

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 123456: "123,456",
		1234567: "1,234,567"} {
		if got := Thousands(n); got != want {
			t.Errorf("Thousands(%d) is %q, want %q", n, got, want)
		}
	}
}

func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 µs", 250 * time.Microsecond: "250 µs", 1500 * time.Microsecond: "1.50 ms",
		12_340 * time.Microsecond: "12.3 ms", 1234 * time.Millisecond: "1,234 ms",
	} {
		if got := Milliseconds(d); got != want {
			t.Errorf("Milliseconds(%d) is %q, want %q", d, got, want)
		}
	}
}

func TestShorten(t *testing.T) {
	if got := Shorten(" broken\n  pipe "); got != "broken pipe" {
		t.Errorf("got %q", got)
	}
	if got := Shorten(strings.Repeat("ä", 1000)); len(got) > shortLen+3 ||
		strings.ContainsRune(got, '\uFFFD') {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}
