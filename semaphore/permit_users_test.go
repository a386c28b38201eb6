package semaphore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/passbuddy/passbuddy/internal/bubble"
)

func TestOverlappingUsersReleaseOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		p := s.NewPermit()
		inner := make(chan struct{})
		done := make(chan error)
		go func() {
			done <- p.Do(t.Context(), func(context.Context) error { <-inner; return nil })
		}()
		synctest.Wait()
		double := Bind(p, func(_ context.Context, n int) (int, error) {
			return 2 * n, nil
		}, BindOptions{})
		if got, err := double(t.Context(), 21); got != 42 || err != nil {
			t.Fatalf("bound function: %d, %v", got, err)
		}
		if !p.Held() {
			t.Fatal("released while a user is still inside")
		}
		close(inner)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if p.Held() {
			t.Fatal("not released by the last")
		}
		keep := Bind(p, func(context.Context, struct{}) (string, error) {
			return "", errors.New("no")
		}, BindOptions{KeepOnEnd: true})
		if _, err := keep(t.Context(), struct{}{}); err == nil {
			t.Fatal("the bound function's error is lost")
		}
		if !p.Held() {
			t.Fatal("KeepOnEnd did not keep")
		}
	})
}

// The last user leaves and is about to release the permit when another user comes and finds it
// held.
func TestLastUserToLeaveLooksAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		p := s.acquire(t)
		p.turn <- struct{}{} // another caller extends it meanwhile
		first := make(chan error, 1)
		go func() { first <- p.Do(t.Context(), func(context.Context) error { return nil }) }()
		synctest.Wait()
		stay, second := make(chan struct{}), make(chan error, 1)
		go func() {
			second <- p.Do(t.Context(), func(context.Context) error {
				<-stay
				if !p.Held() {
					t.Error("the permit was released during its use")
				}
				return nil
			})
		}()
		synctest.Wait()
		<-p.turn
		synctest.Wait()
		close(stay)
		if err := errors.Join(<-first, <-second); err != nil {
			t.Error(err)
		}
		if p.Held() || s.snapshot(t).Held != 0 {
			t.Error("the last user to leave did not release the permit")
		}
	})
}

// slowToFail is a context that has ended, and whose caller finds that out when held is closed.
type slowToFail struct {
	context.Context
	held chan struct{}
}

func (c slowToFail) Err() error {
	<-c.held
	return c.Context.Err()
}

// A caller gives up waiting for the permit. Before it is counted out, another one uses the permit,
// and leaves the release to the callers that are still counted in. The one that gives up is the
// last of them.
func TestAUserThatGivesUpDoesTheRelease(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("KeepOnEnd %v", keep), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s := w.join(Config{Capacity: 1, MaxAttempts: -1})
				only, p := s.acquire(t), s.NewPermit()
				first := bubble.Later(func() (int, error) {
					return Bind(p, func(context.Context, int) (int, error) {
						return 0, nil
					}, BindOptions{KeepOnEnd: keep})(t.Context(), 0)
				})
				ctx, cancel := context.WithCancel(t.Context())
				late := slowToFail{ctx, make(chan struct{})}
				second := bubble.Later(func() (int, error) {
					return 0, p.Do(late, func(context.Context) error {
						t.Error("used by a caller that gave up")
						return nil
					})
				})
				cancel()
				synctest.Wait()
				release(t, only)
				if !first.IsDone() || first.Err != nil || !p.Held() {
					t.Fatalf("bug in the test: done %v, %v; held %v", first.IsDone(), first.Err,
						p.Held())
				}
				close(late.held)
				if !second.IsDone() || !errors.Is(second.Err, context.Canceled) {
					t.Errorf("the caller that gave up is told %v", second.Err)
				}
				if held := s.snapshot(t).Held == 1; p.Held() != keep || held != keep {
					t.Errorf("held %v, and by Redis %v, without a user; KeepOnEnd is %v", p.Held(),
						held, keep)
				}
			})
		})
	}
}
