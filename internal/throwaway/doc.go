// Package throwaway starts real PostgreSQL, Redis and PgBouncer servers for tests, the demo and the
// benchmarks, and ends them again.
//
// A server listens on a free port of the loopback interface, keeps its files in a temporary folder
// of its own, and is the child of the process that started it. The folder is in /dev/shm, which is
// in memory, where Linux has 2 GiB free there and TMPDIR is not set. Stop ends the server by
// process id and removes the folder. If the parent dies without calling Stop, then on Linux the
// kernel ends the server, and the next start by any process removes the folder. This package never
// touches a server that it did not start.
//
// No data is durable: the servers run with every form of syncing to disk switched off. Do not keep
// data in them.
//
// [Sentinel] and [RedisCluster] are several Redis servers that fail over. A test can disturb a
// server by its methods Kill, Restart, Pause, StepClock and CutReplication.
//
// [Proxy] is a TCP proxy between a client and a server: it stalls, refuses, cuts and loses traffic.
// [Proxies] starts one for each server that a client dials.
package throwaway

import (
	"errors"
	"fmt"
)

// ErrNotFound says that a server program is not installed. The error that wraps it names the
// program and the remedy.
var ErrNotFound = errors.New("throwaway: program not found")

// errPortTaken: another process bound the port after we picked it and before the server bound it.
var errPortTaken = errors.New("port taken")

// portAttempts bounds how many ports a start tries. One retry is already rare.
const portAttempts = 5

func notFound(program, hint string) error {
	return fmt.Errorf("%w: %s (%s)", ErrNotFound, program, hint)
}
