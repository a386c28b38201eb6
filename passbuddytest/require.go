package passbuddytest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/semaphore"
)

// RequireHeld waits until the fleet holds exactly n permits, those of Exhaust and of idle
// connections included. If that does not come true within 10s and twice the TTL, RequireHeld ends
// the test, and shows who holds and who waits.
func (f *Fleet) RequireHeld(t testing.TB, n int) {
	t.Helper()
	f.here(t, "RequireHeld")
	if n < 0 {
		t.Fatalf("passbuddytest: RequireHeld: n is %d: it must be at least 0", n)
	}
	f.require(t, "RequireHeld", func(s semaphore.Snapshot) string {
		if s.Held == n {
			return ""
		}
		return fmt.Sprintf("permits held: %d, want %d", s.Held, n)
	})
}

// RequireNoLeak waits until nothing of the fleet is left behind: no permit is held, no request
// waits, and every session has left. A session of Semaphore may still be open. Call RequireNoLeak
// at the end of a test, when the code under test has closed its pools and the semaphores that it
// opened by itself. If anything stays for 10s and twice the TTL, RequireNoLeak ends the test, and
// shows what that is.
func (f *Fleet) RequireNoLeak(t testing.TB) {
	t.Helper()
	f.here(t, "RequireNoLeak")
	f.require(t, "RequireNoLeak", func(s semaphore.Snapshot) string {
		var left []string
		if s.Held > 0 {
			left = append(left, fmt.Sprintf("permits held: %d", s.Held))
		}
		if len(s.Waiters) > 0 {
			left = append(left, fmt.Sprintf("requests waiting: %d", len(s.Waiters)))
		}
		for _, session := range s.Sessions {
			if !f.isOpen(session.ID) {
				left = append(left, fmt.Sprintf("the session of %q was not closed",
					session.Owner))
			}
		}
		return strings.Join(left, ", ")
	})
}

// isOpen reports whether the session is one of Semaphore's, and open.
func (f *Fleet) isOpen(session string) bool {
	f.mu.Lock()
	sem := f.sessions[session]
	f.mu.Unlock()
	return sem != nil && !sem.Engine(engine.Seam{}).Closed()
}

// require waits until wrong, which says what is wrong, returns "".
func (f *Fleet) require(t testing.TB, method string, wrong func(semaphore.Snapshot) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), f.patience())
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		s, err := f.inspector.Snapshot(ctx)
		trouble := ""
		if err == nil {
			if trouble = wrong(s); trouble == "" {
				return
			}
		}
		select {
		case <-time.After(pause):
			continue
		case <-ctx.Done():
		}
		if err != nil {
			t.Fatalf("passbuddytest: %s: %v", method, err)
		}
		t.Fatalf("passbuddytest: %s: %s, still after %v\n%s", method, trouble, f.patience(),
			describe(s))
	}
}

// state describes the fleet now.
func (f *Fleet) state() string {
	ctx, cancel := context.WithTimeout(context.Background(), f.patience())
	defer cancel()
	s, err := f.inspector.Snapshot(ctx)
	if err != nil {
		return err.Error()
	}
	return describe(s)
}

// describe tells a snapshot in a few lines.
func describe(s semaphore.Snapshot) string {
	var b strings.Builder
	fmt.Fprintf(&b, "capacity %d, held %d, waiting %d", s.Capacity, s.Held, len(s.Waiters))
	if s.Quarantined > 0 {
		fmt.Fprintf(&b, ", of those held %d in quarantine", s.Quarantined)
	}
	if s.GrantsPausedFor > 0 {
		fmt.Fprintf(&b, ", grants paused for %v: Redis lost its state", s.GrantsPausedFor)
	}
	if s.Pause != nil {
		fmt.Fprintf(&b, ", paused by %q", s.Pause.By)
	}
	known := 0
	for _, session := range s.Sessions {
		known += session.Held
		fmt.Fprintf(&b, "\n  %s: holds %d, waiting %d", session.Owner, session.Held,
			session.Waiting)
		for _, p := range session.Pools {
			fmt.Fprintf(&b, "\n    pool %q, %v ago: permits %d, in use %d, idle %d, opening %d, "+
				"closing %d, callers waiting %d", p.Name, session.Age.Round(time.Millisecond),
				p.Permits, p.InUse, p.Idle, p.Opening, p.Closing, p.Waiting)
		}
	}
	if s.Held > known {
		fmt.Fprintf(&b, "\n  sessions that are gone, other clients: hold %d", s.Held-known)
	}
	return b.String()
}
