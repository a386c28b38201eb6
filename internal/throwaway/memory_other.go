//go:build !linux

package throwaway

// memoryFolders are folders whose files are in memory: none here.
func memoryFolders() []string { return nil }
