//go:build !unix

package throwaway

import (
	"errors"
	"os"
	"os/exec"
)

var (
	sigStop = os.Kill
	sigFast = os.Kill
	sigNow  = os.Kill
	sigKill = os.Kill

	sigPause    = os.Interrupt // refused here
	sigContinue = os.Interrupt
)

type account struct{}

func serverAccount() (*account, error) {
	return nil, errors.New("throwaway: servers can be started on Linux, macOS and other Unix " +
		"systems only")
}

func (*account) prepare(*exec.Cmd, os.Signal) {}
func setApart(*exec.Cmd)                      {}
func (*account) own(string) error             { return nil }
func (*account) reaches(string) bool          { return true }

func lockFolder(string) (*os.File, error) { return nil, nil }
func abandoned(string, os.FileInfo) bool  { return false }
