package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// ticksPerSecond is the unit of the times in /proc (USER_HZ), the same on every architecture that
// Go runs on.
const ticksPerSecond = 100

// process holds the fields that we read from /proc/<pid>/stat.
type process struct {
	parent int
	own    int64 // ticks of its own threads
	reaped int64 // ticks of ended children that it waited for, and of their children
}

// readCPU reads the CPU time of all processes once.
func readCPU(parts cpuParts) (cpuSeconds, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return cpuSeconds{}, err
	}
	all := make(map[int]process, len(paths))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, p, err := parseStat(text)
		if err != nil {
			return cpuSeconds{}, err
		}
		all[pid] = p
	}
	return parts.sum(all), nil
}

// sum adds up. Postgres's time is that of the postmaster, of the ended backends and of the live
// ones.
func (parts cpuParts) sum(all map[int]process) cpuSeconds {
	seconds := func(pid int) float64 { return float64(all[pid].own) / ticksPerSecond }
	c := cpuSeconds{known: true, redis: seconds(parts.redis), pgBouncer: seconds(parts.pgBouncer)}
	for _, pid := range parts.fleet {
		c.fleet += seconds(pid)
	}
	c.postgres = seconds(parts.postgres) + float64(all[parts.postgres].reaped)/ticksPerSecond
	for pid, p := range all {
		if p.parent == parts.postgres {
			c.postgres += seconds(pid)
		}
	}
	return c
}

// parseStat reads a line of /proc/<pid>/stat (proc_pid_stat(5)). The name in it may contain any
// character, even brackets.
func parseStat(text []byte) (pid int, p process, err error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return 0, p, fmt.Errorf("stat of a process: %q", text)
	}
	if pid, err = strconv.Atoi(string(bytes.TrimSpace(text[:open]))); err != nil {
		return 0, p, fmt.Errorf("stat of a process: %w", err)
	}
	fields := bytes.Fields(text[end+1:]) // from the third on
	if len(fields) < 15 {
		return 0, p, fmt.Errorf("stat of process %d: %q", pid, text)
	}
	var n [4]int64 // utime, stime, cutime, cstime
	for i := range n {
		if n[i], err = strconv.ParseInt(string(fields[11+i]), 10, 64); err != nil {
			return 0, p, fmt.Errorf("stat of process %d: %w", pid, err)
		}
	}
	if p.parent, err = strconv.Atoi(string(fields[1])); err != nil {
		return 0, p, fmt.Errorf("stat of process %d: %w", pid, err)
	}
	p.own, p.reaped = n[0]+n[1], n[2]+n[3]
	return pid, p, nil
}
