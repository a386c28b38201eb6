//go:build unix

package fleet

import (
	"os/exec"
	"syscall"
)

// ownGroup keeps a Ctrl-C at the terminal from reaching the worker: the parent receives it, and
// ends the workers in order.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
