package throwaway

import "syscall"

const (
	tmpfs = 0x01021994 // the magic number of that file system; see statfs(2)
	// memoryNeeded is how much must be free: some 40 MB for each server, ten times over for the
	// servers of several packages at once, and room for the shared memory of Postgres itself. A
	// container often has 64 MB.
	memoryNeeded = 2 << 30
)

// memoryFolders are folders whose files are in memory, if there is room and this process may write.
func memoryFolders() []string {
	const writeAndPass = 2 | 1 // W_OK and X_OK; see access(2)
	if syscall.Access(sharedMemory, writeAndPass) != nil {
		return nil
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(sharedMemory, &fs); err != nil || int64(fs.Type) != tmpfs ||
		fs.Bavail*uint64(fs.Bsize) < memoryNeeded {
		return nil
	}
	return []string{sharedMemory}
}
