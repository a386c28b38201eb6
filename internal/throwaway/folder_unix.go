//go:build unix

package throwaway

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// lockFolder creates and locks the lock file. The kernel drops the lock when the process ends,
// however it ends.
func lockFolder(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// abandoned reports whether the folder is one of ours and its lock is free. Any user can create a
// folder of that name in /tmp. So folders of other users are left alone, and a lock that is a
// symbolic link is not followed.
func abandoned(path string, info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !ours(stat.Uid) {
		return false
	}
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

func ours(uid uint32) bool {
	if uid == uint32(os.Geteuid()) {
		return true
	}
	a, err := serverAccount()
	return err == nil && a != nil && a.uid == uid
}
