package allotment

import (
	"testing"
	"time"
)

// Patience doubles with each permit that is missed soon after it was given away, up to a bound. It
// halves after each calm.
func TestPatience(t *testing.T) {
	const first, soon = 10 * time.Millisecond, time.Second
	now := time.Unix(1000, 0)
	var p patience
	expect := func(what string, want time.Duration) {
		t.Helper()
		if got := p.length(now, first); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	expect("at the start", first)
	p.miss(now, soon)
	expect("a caller waits, and nothing was given", first)
	for _, want := range []time.Duration{2 * first, 4 * first, 8 * first, 16 * first, 16 * first} {
		p.promise(now)
		now = now.Add(soon - 1)
		p.miss(now, soon)
		expect("missed soon", want)
	}
	p.miss(now, soon)
	expect("missed once, told twice", 16*first)
	p.promise(now)
	now = now.Add(soon)
	p.miss(now, soon)
	expect("missed late", 16*first)
	now = now.Add(patienceCalm - soon)
	expect("calm", 8*first)
	now = now.Add(time.Hour)
	expect("calm for long", first)
	if got := p.length(now, time.Hour); got != maxPatience {
		t.Errorf("%v, want at most %v", got, maxPatience)
	}
}
