//go:build unix

package holdrun

import (
	"strings"
	"testing"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
)

func TestCapacityStaysTheFleets(t *testing.T) {
	f := newFleet(t)
	f.join(20)
	r := f.start("--", "sh", "-c", "echo ready; cat")
	r.says("ready")
	if now := f.snapshot(); now.Capacity != 20 {
		t.Errorf("capacity %d", now.Capacity)
	}
	// A later member with more, or with less, has its way.
	less := f.join(10)
	if now := f.snapshot(); now.Capacity != 10 {
		t.Errorf("capacity %d", now.Capacity)
	}
	_ = less.Close()
	if now := f.snapshot(); now.Capacity != 20 {
		t.Errorf("capacity %d", now.Capacity)
	}
	_ = r.stdin.Close()
	r.ends(0)
}

func TestNobodyHasSaidWhatTheCapacityIs(t *testing.T) {
	f := newFleet(t)
	out := f.start("--", "echo", "it ran").ends(exit.Usage)
	if strings.Contains(out, "it ran") || !strings.Contains(out, "--capacity") {
		t.Errorf("it said %q", out)
	}
	r := f.start("--capacity", "1", "--", "sh", "-c", "echo ready; cat")
	r.says("ready")
	if now := f.snapshot(); now.Capacity != 1 {
		t.Errorf("capacity %d", now.Capacity)
	}
	// Its capacity holds for another that declares none.
	f.start("--wait", "0", "--", "true").ends(exit.NoPermit)
	_ = r.stdin.Close()
	r.ends(0)
}

func TestOperatorsCapacityIsEnough(t *testing.T) {
	f := newFleet(t)
	sem := f.join(20)
	if err := sem.SetCapacity(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	_ = sem.Close()
	f.start("--", "true").ends(0)
	f.start("-n", "4", "--", "true").ends(exit.NoPermit)
}

func TestCapacityThatLowersTheFleets(t *testing.T) {
	f := newFleet(t)
	f.join(20)
	out := f.start("--capacity", "5", "--", "true").ends(0)
	if !strings.Contains(out, "from 20 to 5") {
		t.Errorf("it said %q", out)
	}
	if out := f.start("--capacity", "20", "--", "true").ends(0); out != "" {
		t.Errorf("it said %q", out)
	}
}

// While the last session that declares a capacity leaves, the queue is granted to everybody. Such a
// grant does not count.
func TestFleetLeavesWhileTheCommandWaits(t *testing.T) {
	f := newFleet(t)
	sem := f.join(1)
	if _, err := sem.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := f.start("--wait", "1m", "--", "echo", "it ran")
	second := f.start("--wait", "1m", "--", "echo", "it ran")
	eventually(t, patience, func() (bool, string) {
		return len(f.snapshot().Waiters) == 2, "they do not wait"
	})
	if err := sem.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*run{first, second} {
		if out := r.ends(exit.Usage); strings.Contains(out, "it ran") {
			t.Errorf("it said %q", out)
		}
	}
}
