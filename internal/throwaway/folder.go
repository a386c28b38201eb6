package throwaway

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	folderPrefix = "passbuddy-throwaway-"
	lockName     = "lock"
	sharedMemory = "/dev/shm" // of Linux
	// socketPathMax is the shortest limit on the path of a Unix socket among the systems supported
	// (macOS: 104 bytes with the final NUL).
	socketPathMax = 103
	// abandonedAfter is the least age at which a folder without a lock counts as left behind: its
	// owner may be about to lock it.
	abandonedAfter = time.Minute
)

// folder is a temporary folder with a lock file in it, held as long as the owning process lives. A
// folder whose lock is free was left behind by a process that was killed.
type folder struct {
	path string
	lock *os.File
}

// newFolder makes a folder that a can reach, and removes those that killed processes left behind.
func newFolder(kind string, a *account) (*folder, error) {
	// Memory too, where it is not chosen: what was left behind there may be why it has no room.
	for _, dir := range append(bases(), sharedMemory) {
		sweep(dir)
	}
	base, err := baseFor(a)
	if err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp(base, folderPrefix+kind+"-")
	if err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	lock, err := lockFolder(filepath.Join(path, lockName))
	if err == nil {
		err = a.own(path)
	}
	if err != nil {
		_ = os.RemoveAll(path)
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	return &folder{path: path, lock: lock}, nil
}

// remove deletes the folder. The lock goes last, so that a sweep by another process does not meet a
// half-removed folder.
func (f *folder) remove() error {
	err := os.RemoveAll(f.path)
	if f.lock != nil {
		err = errors.Join(err, f.lock.Close())
	}
	return err
}

// bases are the folders that can be the parent, the best first. On Linux that is a file system in
// memory: to write a database cluster to a disk and to delete it takes the kernel a second, and in
// memory a tenth of that. TMPDIR overrules it.
func bases() (dirs []string) {
	if os.Getenv("TMPDIR") == "" {
		dirs = memoryFolders()
	}
	return append(dirs, os.TempDir(), "/tmp", "/var/tmp")
}

// baseFor picks the parent of the folders: the first that the server's account can reach (root's
// TMPDIR may be private), and in which a socket's path would not be too long.
func baseFor(a *account) (string, error) {
	longest := len("/" + folderPrefix + "postgres-0123456789/.s.PGSQL.65535")
	candidates := bases()
	for _, dir := range candidates {
		if abs, err := filepath.Abs(dir); err == nil && len(abs)+longest <= socketPathMax &&
			a.reaches(abs) {
			return abs, nil
		}
	}
	return "", fmt.Errorf("throwaway: none of %s can be used by the server's account",
		strings.Join(candidates, ", "))
}

// sweep removes folders that killed processes left behind. It is best effort: the next start
// retries what failed.
func sweep(base string) {
	paths, _ := filepath.Glob(filepath.Join(base, folderPrefix+"*"))
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < abandonedAfter {
			continue
		}
		if abandoned(path, info) {
			_ = os.RemoveAll(path)
		}
	}
}
