package holdrun

import "syscall"

// endWithParent has the kernel end the command, by a signal that it can clean up after, when this
// process ends in any way. The guard does so as well, and a moment later by SIGKILL.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }
