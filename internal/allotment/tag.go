package allotment

import "fmt"

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
	_, err := fmt.Sscanf(tag+" 0", "%d %d %d", &b.PID, &b.Start, &b.Server)
	return b, err == nil
}
