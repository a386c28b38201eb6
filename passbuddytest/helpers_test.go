package passbuddytest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/passbuddytest"
	"github.com/passbuddy/passbuddy/semaphore"
)

// short has an Acquire give up soon where a test runs in real time.
func short(capacity int) passbuddytest.Config {
	return passbuddytest.Config{
		Capacity: capacity, MaxAttempts: 1, RetryInterval: 200 * time.Millisecond,
	}
}

// inBoth runs a test in a bubble and outside.
func inBoth(t *testing.T, f func(t *testing.T)) {
	t.Run("bubble", func(t *testing.T) { synctest.Test(t, f) })
	t.Run("real time", f)
}

// isFake reports whether the clock is a bubble's.
func isFake() bool { return time.Now().Year() < 2020 }

// acquire acquires a permit that is free. In real time it takes its time: an Acquire of short's can
// give up because the machine stands still.
func acquire(t *testing.T, sem *semaphore.Semaphore) *semaphore.Permit {
	t.Helper()
	for began := time.Now(); ; {
		p, err := sem.Acquire(t.Context())
		if err == nil {
			return p
		}
		if isFake() || time.Since(began) > 30*time.Second {
			t.Fatalf("Acquire: %v", err)
		}
	}
}

func release(t *testing.T, permits ...*semaphore.Permit) {
	t.Helper()
	for _, p := range permits {
		if err := p.Release(t.Context()); err != nil {
			t.Fatalf("Release: %v", err)
		}
	}
}

// later acquires in the background, for as long as it takes.
func later(t *testing.T, sem *semaphore.Semaphore) <-chan error {
	done := make(chan error, 1)
	go func() {
		for {
			_, err := sem.Acquire(t.Context())
			if !errors.Is(err, semaphore.ErrCapacity) && !errors.Is(err, semaphore.ErrUnavailable) {
				done <- err
				return
			}
		}
	}()
	return done
}

// await receives from c, or fails the test.
func await[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: nothing for 30s", what)
	}
	return v
}

// awaitWaiters waits until so many requests are in the queue.
func awaitWaiters(t *testing.T, sem *semaphore.Semaphore, n int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		s, err := sem.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Waiters) == n {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%d requests wait, want %d", len(s.Waiters), n)
		}
	}
}

// A fakeT is a test that may fail, or that an example has instead of its test's t.
type fakeT struct {
	testing.TB // nil: each method that is used is below

	mu       sync.Mutex
	text     string
	output   bytes.Buffer
	cleanups []func()
}

func (t *fakeT) Helper()                  {}
func (t *fakeT) Context() context.Context { return context.Background() }
func (t *fakeT) Output() io.Writer        { return (*fakeOutput)(t) }
func (t *fakeT) Cleanup(f func())         { t.cleanups = append(t.cleanups, f) }

func (t *fakeT) Errorf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text += fmt.Sprintf(format, args...) + "\n"
}

func (t *fakeT) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

func (t *fakeT) Fatal(args ...any) { t.Fatalf("%s", fmt.Sprint(args...)) }

// fakeOutput holds the log of a fakeT.
type fakeOutput fakeT

func (o *fakeOutput) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.output.Write(b)
}

// end runs the cleanups, and returns what failed.
func (t *fakeT) end() string {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
	return t.text
}

// failure runs f as a test of its own, and returns why that failed.
func failure(f func(t *fakeT)) string {
	t := &fakeT{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(t)
	}()
	<-done
	return t.end()
}

// addPermit adds a permit as a client of another kind does.
func addPermit(t *testing.T, f *passbuddytest.Fleet, key, id string, expiry float64) error {
	return f.Client(t).ZAdd(t.Context(), key, redis.Z{Score: expiry, Member: id}).Err()
}
