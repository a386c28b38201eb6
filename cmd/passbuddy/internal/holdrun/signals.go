//go:build unix

package holdrun

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// caught are the signals that are for the command. Those that would end the wait for permits come
// first.
var caught = []syscall.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT,
}

const endWait = 4 // of caught

// catch returns the channel that the signals for the command arrive at. A signal that this process
// was started to ignore (nohup) is left alone: the command inherits that.
func catch() (signals chan os.Signal, stop func()) {
	signals = make(chan os.Signal, 16)
	for _, s := range caught {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	return signals, func() { signal.Stop(signals) }
}

// interrupted is why a wait ended.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return fmt.Sprintf("ended by signal: %v", i.signal) }

// interruptible runs f with a context that ends, with an interrupted as its cause, at the first
// signal that is to end a wait.
func interruptible[T any](
	ctx context.Context, signals <-chan os.Signal, f func(context.Context) (T, error),
) (T, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case s := <-signals:
				for _, ends := range caught[:endWait] {
					if s == ends {
						cancel(interrupted{ends})
					}
				}
			case <-done:
				return
			}
		}
	}()
	result, err := f(ctx)
	close(done)
	<-stopped
	var why interrupted
	if errors.As(context.Cause(ctx), &why) { // also if it came when f was done
		err = why
	}
	return result, err
}
