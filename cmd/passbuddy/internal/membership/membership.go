// Package membership is how the tool itself becomes a session of a fleet.
//
// A session declares a capacity, and the smallest that a live session declares is in force. So the
// tool must not declare the default: it would cut the fleet to that while it lives.
//
//   - A session for one command declares [Most], which changes nothing. It is no capacity, either:
//     once nobody else declares one, nothing is capped. So such a session relies on a grant only
//     while [InForce] says that somebody else's capacity holds.
//   - A session that goes on being granted permits for days must have a capacity of its own: the
//     rest of the fleet can leave meanwhile. It declares what it is told, or else [ToDeclare].
package membership

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/semaphore"
)

// Most is the largest capacity that semaphore.Config takes.
const Most = 1_000_000

// ErrNoCapacity says that nobody has said what the fleet's capacity is.
var ErrNoCapacity = errors.New("no capacity is in force: no session of a fleet declares one, and " +
	"no operator has set one. Give --capacity, or set one with `passbuddy capacity`")

// InForce returns the capacity that holds whether or not this process is there, 0 if there is none.
func InForce(s semaphore.Snapshot) int {
	if s.OperatorCapacity > 0 {
		return s.OperatorCapacity
	}
	if s.Capacity >= Most {
		return 0
	}
	return s.Capacity
}

// proxyProgram is the program in the owner of a proxy's session.
const proxyProgram = "passbuddy-proxy"

// ToDeclare returns the capacity for a session that was not told any, and where it comes from: the
// smallest that a session of the fleet declares, else an operator's. An operator's does not come
// first, because it may be withdrawn again.
//
// Other proxies count only where there is nothing else. Two that were restarted in turn would
// otherwise keep a capacity alive that the fleet has long given up.
func ToDeclare(s semaphore.Snapshot) (n int, source string, err error) {
	for _, session := range s.Sessions {
		if session.Capacity > 0 && session.Capacity < Most && !isProxy(session.Owner) &&
			(n == 0 || session.Capacity < n) {
			n, source = session.Capacity, session.Owner
		}
	}
	switch {
	case n > 0:
		return n, source, nil
	case s.OperatorCapacity > 0:
		return s.OperatorCapacity, s.CapacitySetBy, nil
	}
	for _, session := range s.Sessions {
		if session.Capacity > 0 && session.Capacity < Most && (n == 0 || session.Capacity < n) {
			n, source = session.Capacity, session.Owner
		}
	}
	if n == 0 {
		return 0, "", ErrNoCapacity
	}
	return n, source, nil
}

// Snapshot reads the state of the semaphore of that prefix and name, without joining it.
func Snapshot(
	ctx context.Context, client redis.UniversalClient, prefix, name string,
) (semaphore.Snapshot, error) {
	inspector, err := semaphore.NewInspector(client, prefix, name)
	if err != nil {
		return semaphore.Snapshot{}, err
	}
	return inspector.Snapshot(ctx)
}

// RunOwner is the owner of the session that runs a program. The arguments of that can have a
// password in them, and are not shown.
func RunOwner(program string) string { return owner("passbuddy-run(" + program + ")") }

// ProxyOwner is the owner of a proxy's session.
func ProxyOwner() string { return owner(proxyProgram) }

// owner has the form of the library's default: <host>/<program>/<pid>.
func owner(program string) string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s/%s/%d", host, program, os.Getpid())
}

func isProxy(owner string) bool { return strings.Contains(owner, "/"+proxyProgram+"/") }
