package holdrun

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// endWithParent has the kernel end the command, by a signal that it can clean up after, when this
// process ends in any way. The guard does so as well, and a moment later by SIGKILL.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }

// adoptOrphans makes what the command leaves behind our children, instead of process 1's. In a
// container that may wait for nobody, and an ended process would stay in the group for ever.
func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }
