//go:build linux || darwin

package throwaway

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// removeSegment removes the System V shared memory segment that a server killed with SIGKILL leaves
// behind. PostgreSQL uses it as an interlock and notes its key and id on the 7th line of
// postmaster.pid, a file that an orderly end removes. The kernel has few segments and keeps them
// until the next boot.
func removeSegment(dataDir string) {
	pidFile, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return
	}
	lines := strings.Split(string(pidFile), "\n")
	if len(lines) < 7 {
		return
	}
	fields := strings.Fields(lines[6])
	if len(fields) != 2 {
		return
	}
	if id, err := strconv.Atoi(fields[1]); err == nil {
		// A segment that is gone already is just as good.
		_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	}
}
