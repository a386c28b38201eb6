package semaphore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

func TestPermitLife(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1, TTL: 2 * time.Second})
		p := s.NewPermit()
		if p.Held() {
			t.Fatal("a new permit is held")
		}
		if _, err := uuid.Parse(p.ID()); err != nil {
			t.Fatalf("ID %q: %v", p.ID(), err)
		}
		if err := p.Release(t.Context()); err != nil {
			t.Fatalf("releasing a permit that is not held: %v", err)
		}
		id := p.ID()
		if err := p.Use(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p.ID() != id {
			t.Fatal("the UUID changed by acquiring")
		}
		if members, err := w.Redis.ZMembers("passbuddy-semaphore"); err != nil ||
			!slices.Equal(members, []string{id}) {
			t.Fatalf("the original's sorted set holds %q, %v, want the permit", members, err)
		}
		before := w.Redis.CommandCount()
		if err := p.Use(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.Redis.CommandCount() != before {
			t.Fatal("using a held permit asked Redis")
		}
		release(t, p)
		release(t, p)
		if p.Held() || p.ID() == id {
			t.Fatal("after a release the permit is held, or keeps its UUID")
		}
		if err := p.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !p.Held() {
			t.Fatal("acquired again, but not held")
		}
	})
}

func TestAcquireExtendsWhatIsHeld(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1, TTL: 3 * time.Second})
		p := s.acquire(t)
		time.Sleep(500 * time.Millisecond) // before the first heartbeat
		before := p.trustedUntil()
		if err := p.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := p.trustedUntil() - before; got != 500*time.Millisecond {
			t.Fatalf("extended by %v, want 500ms", got)
		}
		if s.snapshot(t).Held != 1 {
			t.Fatal("extending took a second permit")
		}
		if _, err := w.Redis.ZRem("passbuddy-semaphore", p.ID()); err != nil {
			t.Fatal(err)
		}
		other := s.NewPermit()
		if err := other.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.Acquire(t.Context()); !errors.Is(err, ErrLost) {
			t.Fatalf("extending a permit that Redis granted to another session: %v, want ErrLost",
				err)
		}
		if p.Held() || !other.Held() {
			t.Fatal("the wrong session holds the permit")
		}
	})
}

// trustedUntil may be called only while all goroutines of the bubble wait.
func (p *Permit) trustedUntil() time.Duration {
	synctest.Wait()
	return p.now.Load().TrustedUntil()
}

func TestReleaseOutlivesItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		p := s.acquire(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Release(ctx); err != nil {
			t.Fatalf("Release with a done context: %v", err)
		}
		if s.snapshot(t).Held != 0 {
			t.Fatal("not released")
		}
	})
}

func TestReleaseIsRepeatedUntilRedisAnswers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, other := w.join(Config{Capacity: 1, TTL: time.Minute}), w.join(Config{Capacity: 1,
			TTL: time.Minute})
		p := s.acquire(t)
		s.link.SetCut(true)
		if err := p.Release(t.Context()); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("Release without Redis: %v", err)
		}
		if p.Held() {
			t.Fatal("held after a release")
		}
		s.link.SetCut(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if other.snapshot(t).Held != 0 {
			t.Fatal("the release was not repeated")
		}
	})
}

func TestDo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		p := s.NewPermit()
		mine := errors.New("mine")
		err := p.Do(t.Context(), func(ctx context.Context) error {
			if !p.Held() || ctx.Err() != nil {
				t.Error("fn runs without the permit")
			}
			return mine
		})
		if !errors.Is(err, mine) {
			t.Fatalf("Do: %v", err)
		}
		if p.Held() || s.snapshot(t).Held != 0 {
			t.Fatal("Do did not release")
		}
		func() {
			defer func() { _ = recover() }()
			_ = p.Do(t.Context(), func(context.Context) error { panic("fn") })
		}()
		if s.snapshot(t).Held != 0 {
			t.Fatal("a panic in fn leaked the permit")
		}
	})
}

func TestDoEndsWhenTheLeaseIsLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1, TTL: time.Second})
		err := s.NewPermit().Do(t.Context(), func(ctx context.Context) error {
			s.link.SetCut(true)
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), ErrLost) {
				t.Errorf("cause %v, want ErrLost", context.Cause(ctx))
			}
			return ctx.Err()
		})
		if !errors.Is(err, ErrLost) || !errors.Is(err, context.Canceled) {
			t.Fatalf("Do: %v", err)
		}
	})
}

// fn may notice the loss before its context does, and return.
func TestDoTellsOfALossThatItsContextDoesNotKnow(t *testing.T) {
	for range 20 { // the context's goroutine is sometimes faster
		inWorld(t, func(t *testing.T, w *world) {
			s := w.join(Config{Capacity: 1, TTL: time.Second})
			p := s.NewPermit()
			err := p.Do(t.Context(), func(context.Context) error {
				s.link.SetCut(true)
				<-p.Lost()
				return nil
			})
			if !errors.Is(err, ErrLost) {
				t.Fatalf("Do: %v, want ErrLost", err)
			}
		})
	}
}

func TestHandler(t *testing.T) {
	for _, o := range []HandlerOptions{{}, {AcquireOnStart: true},
		{AcquireOnStart: true, KeepOnEnd: true}, {KeepOnEnd: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s := w.join(Config{Capacity: 1})
				p := s.NewPermit()
				h := p.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if p.Held() != o.AcquireOnStart {
						t.Errorf("held at start: %v", p.Held())
					}
					if err := p.Use(r.Context()); err != nil {
						t.Error(err)
					}
				}), o)
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
				if p.Held() != o.KeepOnEnd {
					t.Errorf("held at end: %v", p.Held())
				}
			})
		})
	}
}

func TestHandlerAtCapacityAnswers503(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		s.acquire(t)
		rec := httptest.NewRecorder()
		s.NewPermit().Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			t.Error("served without a permit")
		}), HandlerOptions{AcquireOnStart: true}).ServeHTTP(rec,
			httptest.NewRequest("GET", "/", nil))
		if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") == "" {
			t.Fatalf("answered %d, Retry-After %q", rec.Code, rec.Header().Get("Retry-After"))
		}
	})
}

// A Redis that does not answer does not hold up a caller that gives up.
func TestACallerThatGivesUpIsNotHeldUpByRedis(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		release(t, s.acquire(t))
		s.link.SetDeaf(true)
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		waiting := s.later(ctx)
		time.Sleep(20 * time.Millisecond)
		cancel()
		<-waiting.Done
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("returned %v after the call, with a limit of 20ms", took)
		}
		if !errors.Is(waiting.Err, context.Canceled) {
			t.Errorf("error %v", waiting.Err)
		}
		s.link.SetDeaf(false)
		// go-redis finds a connection with a lost handshake dead after a fifth of a lease
		time.Sleep(2 * time.Second)
		if got := s.snapshot(t).Held; got != 0 {
			t.Errorf("%d held: a request that was given up was granted, and its permit kept", got)
		}
		s.acquire(t)
	})
}

// Redis has lost the permit and has a free one. This is a loss, not a new lease under the old UUID.
func TestExtensionDoesNotAcquireAnew(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 2})
		p := s.acquire(t)
		if _, err := w.Redis.ZRem("passbuddy-semaphore", p.ID()); err != nil {
			t.Fatal(err)
		}
		if err := p.Acquire(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("extending a permit that Redis has lost: %v, want ErrLost", err)
		}
		select {
		case <-p.Lost():
		default:
			t.Error("Lost is open")
		}
		if got := s.snapshot(t).Held; got != 0 {
			t.Errorf("%d held, want 0", got)
		}
	})
}

func TestCancelledTryMatchesItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 5})
		s.link.SetDeaf(true)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		if _, err := s.TryAcquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error does not match its context's error: %v", err)
		}
		s.link.SetDeaf(false)
	})
}
