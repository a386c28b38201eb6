//go:build unix

package throwaway

import (
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sharedWords are the words of a file that another process has mapped too. Each word is read and
// written as a whole.
type sharedWords struct{ bytes []byte }

func (s *sharedWords) open(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	s.bytes, err = unix.Mmap(int(f.Fd()), 0, clockBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED)
	return err
}

// word returns the i-th word. A mapping begins at a page, so the word is aligned.
func (s *sharedWords) word(i int) *atomic.Int64 {
	return (*atomic.Int64)(unsafe.Pointer(&s.bytes[8*i]))
}

func (s *sharedWords) close() error { return unix.Munmap(s.bytes) }
