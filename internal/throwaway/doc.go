// Package throwaway starts real PostgreSQL, Redis and PgBouncer servers for tests, the demo and the
// benchmarks, and ends them again.
//
// A server listens on a free port of the loopback interface, keeps its files in a temporary folder
// of its own, and is the child of the process that started it. Stop ends it by process id and
// removes the folder. Should the parent die without calling Stop, then on Linux the kernel ends the
// server, and the next start by anybody removes the folder. Nothing here touches a server that it
// did not start.
//
// Nothing is durable: the servers run with every form of syncing to disk switched off. Do not keep
// data in them.
//
// [Sentinel] and [RedisCluster] are several Redis servers that fail over. What can be done to a
// server: Kill, Restart, Pause, StepClock, CutReplication. [Proxy] is a TCP proxy to put between a
// client and a server, to stall, refuse, cut and lose what passes; [Proxies] are many.
package throwaway

import (
	"errors"
	"fmt"
)

// ErrNotFound says that a server program is not installed. The error that wraps it names the
// program and what to do.
var ErrNotFound = errors.New("throwaway: program not found")

// errPortTaken: somebody else bound the port between our picking it and the server's binding it.
var errPortTaken = errors.New("port taken")

// portAttempts bounds how many ports are tried at a start before giving up. One retry is already
// rare.
const portAttempts = 5

func notFound(program, hint string) error {
	return fmt.Errorf("%w: %s (%s)", ErrNotFound, program, hint)
}
