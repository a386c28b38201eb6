//go:build unix

package throwaway

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Signals to a server, under names that exist on every system.
const (
	sigStop = syscall.SIGTERM
	sigFast = syscall.SIGINT  // PostgreSQL's fast shutdown: sessions are ended, data is written
	sigNow  = syscall.SIGQUIT // PostgreSQL's immediate shutdown: nothing is written
	sigKill = syscall.SIGKILL

	sigPause    = syscall.SIGSTOP
	sigContinue = syscall.SIGCONT
)

// account is the user that a server runs as: nil for our own.
type account struct{ uid, gid uint32 }

// serverAccount returns the account that PostgreSQL runs as. PostgreSQL refuses to run as root. So
// root uses the account that the PostgreSQL packages create, or else the least privileged one.
func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("throwaway: account %s: %w", name, err)
		}
		return &account{uint32(uid), uint32(gid)}, nil
	}
	return nil, errors.New("throwaway: PostgreSQL refuses to run as root, and there is no " +
		"account postgres or nobody to run it as")
}

// prepare makes cmd run as a, in a process group of its own. So a Ctrl-C at the terminal reaches
// only the parent, which then ends its servers in order.
func (a *account) prepare(cmd *exec.Cmd, onParentDeath syscall.Signal) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	platformAttr(cmd.SysProcAttr, onParentDeath)
}

// setApart makes cmd run in a session of its own.
func setApart(cmd *exec.Cmd) { cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Setsid = false, true }

// own gives everything under dir to a.
func (a *account) own(dir string) error {
	if a == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(a.uid), int(a.gid))
	})
}

// reaches reports whether a may pass through dir and all folders above it.
func (a *account) reaches(dir string) bool {
	if a == nil {
		return true
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}
