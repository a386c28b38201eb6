package throwaway

import (
	"context"
	_ "embed" // for the library's source
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

//go:embed preload/clock.c
var clockSource string

const (
	clockFile    = "clock"
	clockLibrary = "clock.so"
	clockBytes   = 16 // two words: the step, and whether a server reads it
)

// StepClock moves the clock that this one server sees by d, forwards or back, at once. It may be
// called any number of times, and a restart keeps the sum of the steps. Only the wall clock moves,
// as when an operator sets it: expiries, TIME and scripts follow it, the server's own timers do
// not.
//
// It needs RedisOptions.Clock, which loads a small library into the server. StartRedis compiles the
// library. Without a C compiler, or on a system other than Linux, StartRedis returns an error that
// wraps [ErrNotFound].
func (r *Redis) StepClock(d time.Duration) error {
	if r.clock == nil {
		return errors.New("throwaway: StepClock needs RedisOptions.Clock")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return errNotRunning
	}
	r.clock.step(d)
	return nil
}

// steppedClock is a file that tells how far a server's clock is off. A nil one does nothing.
type steppedClock struct {
	library, path string
	shared        sharedWords
}

func newSteppedClock(ctx context.Context, dir string) (*steppedClock, error) {
	if runtime.GOOS != "linux" {
		return nil, notFound("LD_PRELOAD", "a server's clock can be stepped on Linux only")
	}
	c := &steppedClock{library: filepath.Join(dir, clockLibrary), path: filepath.Join(dir,
		clockFile)}
	if err := writeClockLibrary(ctx, c.library); err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.path, make([]byte, clockBytes), 0o600); err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	if err := c.shared.open(c.path); err != nil {
		return nil, fmt.Errorf("throwaway: %w", err)
	}
	return c, nil
}

func (c *steppedClock) step(d time.Duration) { c.shared.word(0).Add(int64(d)) }

// env makes a server load the library.
func (c *steppedClock) env() []string {
	if c == nil {
		return nil
	}
	return []string{"LD_PRELOAD=" + c.library, "THROWAWAY_CLOCK=" + c.path}
}

// attached fails if the server that just started ignored the library, as one without a dynamic
// loader would.
func (c *steppedClock) attached() error {
	if c == nil {
		return nil
	}
	if c.shared.word(1).Swap(0) == 0 {
		return errors.New("throwaway: the server did not load " + c.library +
			": it is linked statically, or the file system is mounted noexec")
	}
	return nil
}

func (c *steppedClock) close() error {
	if c == nil {
		return nil
	}
	return c.shared.close()
}

// The library is compiled once for a process and kept in memory, so no file is left behind.
var clockCode struct {
	sync.Mutex
	binary []byte
}

func writeClockLibrary(ctx context.Context, path string) error {
	clockCode.Lock()
	defer clockCode.Unlock()
	if clockCode.binary != nil {
		if err := os.WriteFile(path, clockCode.binary, 0o700); err != nil {
			return fmt.Errorf("throwaway: %w", err)
		}
		return nil
	}
	compiler, err := findCompiler()
	if err != nil {
		return err
	}
	source := path + ".c"
	if err := os.WriteFile(source, []byte(clockSource), 0o600); err != nil {
		return fmt.Errorf("throwaway: %w", err)
	}
	cmd := exec.CommandContext(ctx, compiler, "-O1", "-shared", "-fPIC", "-o", path, source)
	cmd.Env = append(serverEnv(), "TMPDIR="+filepath.Dir(path))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("throwaway: %s: %w; it said:\n%s", compiler, err, out)
	}
	if clockCode.binary, err = os.ReadFile(path); err != nil {
		return fmt.Errorf("throwaway: %w", err)
	}
	return nil
}

var compilers = []string{"cc", "gcc", "clang"}

// findCompiler tries Go's own setting first.
func findCompiler() (string, error) {
	for _, name := range append([]string{os.Getenv("CC")}, compilers...) {
		if name == "" {
			continue
		}
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", notFound("cc", "install a C compiler, or run scripts/setup.sh --need cc")
}
