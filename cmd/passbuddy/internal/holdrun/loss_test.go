//go:build unix

package holdrun

import (
	"strings"
	"testing"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/exit"
)

// stubborn is a command that ignores SIGTERM, with a child that does the same.
const stubborn = `trap "" TERM; sleep 100 & echo child $!; echo self $$; echo ready; wait; sleep 100`

func TestLostLeaseEndsTheCommand(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]string{
		"at SIGTERM": `sleep 100 & echo child $!; echo self $$; echo ready; wait`,
		"by SIGKILL": stubborn,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.join(5)
			r := f.start("--ttl", "3s", "--", "sh", "-c", command)
			r.says("ready")
			f.redis.SetError("LOADING")
			if out := r.ends(exit.Lost); !strings.Contains(out, "lease") {
				t.Errorf("it said %q", out)
			}
			gone(t, "the command", r.says("self "), 0)
			gone(t, "its child", r.says("child "), 0)
		})
	}
}

// SIGKILL of the tool leaves nothing but a lease.
func TestKilledToolLeavesALease(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]string{
		"at SIGTERM": `sleep 100 & echo child $!; echo self $$; echo ready; wait`,
		"by SIGKILL": stubborn,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.join(5)
			r := f.start("--grace", "300ms", "--ttl", "3s", "--", "sh", "-c", command)
			r.says("ready")
			if now := f.snapshot(); now.Held != 1 {
				t.Fatalf("%d held", now.Held)
			}
			_ = r.cmd.Process.Kill()
			<-r.ended
			gone(t, "the command", r.says("self "), patience)
			gone(t, "its child", r.says("child "), patience)
			// The lease ends by itself, for the next who wants it.
			eventually(t, patience, func() (bool, string) {
				return len(f.snapshot().Sessions) == 1, "its session lives"
			})
		})
	}
}
