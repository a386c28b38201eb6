//go:build unix && !linux

package throwaway

import "syscall"

// platformAttr does nothing: there is no parent-death signal here. So a server outlives a parent
// that is killed before it could call Stop.
func platformAttr(*syscall.SysProcAttr, syscall.Signal) {}
