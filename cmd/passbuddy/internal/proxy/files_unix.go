//go:build unix

package proxy

import "syscall"

// maxFiles is how many files this process may open, 0 if that is unknown. Go has raised it to the
// most that the system allows.
func maxFiles() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int(min(uint64(limit.Cur), 1<<30))
}
