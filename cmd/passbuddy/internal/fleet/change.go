package fleet

import (
	"context"
	"fmt"
	"os"
	"syscall"
)

// Join starts one more worker while the others work, waits until it is ready, and lets it work for
// the rest of s. The workers are numbered in the order in which they started, those of Start first.
//
// Only one goroutine may call Join, Leave and Finish.
func (f *Fleet) Join(ctx context.Context, cfg Config, s Span) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := f.add(self, cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	m := f.members[len(f.members)-1]
	if err := m.awaitReady(ctx); err != nil {
		return err
	}
	return m.begin(s)
}

// Leave tells the worker of that number to end, and does not wait for it. Its final report is among
// Finish's.
func (f *Fleet) Leave(number int) error {
	if err := f.members[number].cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end worker %d: %w", number, err)
	}
	return nil
}
