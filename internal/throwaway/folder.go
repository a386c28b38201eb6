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
	base, err := baseFor(a)
	if err != nil {
		return nil, err
	}
	sweep(base)
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

// baseFor picks the parent of the folders. That is the system's temporary folder, unless the
// server's account cannot reach it (root's TMPDIR may be private) or a socket in it would have too
// long a path.
func baseFor(a *account) (string, error) {
	longest := len("/" + folderPrefix + "postgres-0123456789/.s.PGSQL.65535")
	candidates := []string{os.TempDir(), "/tmp", "/var/tmp"}
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
