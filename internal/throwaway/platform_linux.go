package throwaway

import "syscall"

// platformAttr ends the server with the given signal when its parent dies, however that happens.
func platformAttr(attr *syscall.SysProcAttr, onParentDeath syscall.Signal) {
	attr.Pdeathsig = onParentDeath
}
