package allotment

import (
	"fmt"
	"strconv"
	"strings"
)

// A Backend is one Postgres backend, for all time: pids are used again, but not with the same
// start.
type Backend struct {
	PID    uint32
	Start  int64 // pg_stat_activity.backend_start, in microseconds since 1970
	Server int64 // pg_postmaster_start_time() of its server, likewise: only a server that shows the same can say that it is gone; 0 if unknown
}

// Tag returns the engine's name for b.
func (b Backend) Tag() string { return fmt.Sprintf("%d %d %d", b.PID, b.Start, b.Server) }

// parseTag reads a tag; the server is 0 where it lacks one.
func parseTag(tag string) (b Backend, ok bool) {
	words := append(strings.Fields(tag), "0")
	if len(words) < 3 {
		return b, false
	}
	pid, err1 := strconv.ParseUint(words[0], 10, 32)
	start, err2 := strconv.ParseInt(words[1], 10, 64)
	server, err3 := strconv.ParseInt(words[2], 10, 64)
	return Backend{PID: uint32(pid), Start: start, Server: server}, err1 == nil && err2 == nil && err3 == nil
}

// askOf has ask look at the backends of those tags that are well formed. The others are not gone.
func askOf(tags []string, ask func([]Backend) (gone []bool)) []bool {
	var backends []Backend
	var at []int
	for i, tag := range tags {
		if b, ok := parseTag(tag); ok {
			backends, at = append(backends, b), append(at, i)
		}
	}
	out := make([]bool, len(tags))
	if len(backends) > 0 {
		for i, gone := range ask(backends) {
			out[at[i]] = gone
		}
	}
	return out
}
