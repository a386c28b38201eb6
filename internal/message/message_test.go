package message

import "testing"

// A set of permits is written as the scripts read it: its lease, and its UUIDs.
func TestPermits(t *testing.T) {
	if got, want := Permits(5000, "a", "b"), "5000 a b"; got != want {
		t.Errorf("written as %q, want %q", got, want)
	}
}

// Of the kinds of requests, those of try and hold do not wait in the queue.
func TestKindsThatWait(t *testing.T) {
	for kind, want := range map[Kind]bool{Try: false, Hold: false, Wait: true, Pool: true, Join: true} {
		if kind.Waits() != want {
			t.Errorf("%q waits: %v, want %v", kind, kind.Waits(), want)
		}
	}
}
