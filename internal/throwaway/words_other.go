//go:build !unix

package throwaway

import (
	"errors"
	"sync/atomic"
)

type sharedWords struct{}

func (*sharedWords) open(string) error      { return errors.ErrUnsupported }
func (*sharedWords) word(int) *atomic.Int64 { return new(atomic.Int64) }
func (*sharedWords) close() error           { return nil }
