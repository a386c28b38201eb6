package semaphore

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// pool is a Sharer that notes what it is told. With obey it gives back what is recalled, also what is granted only afterwards:
// a recall can overtake the grant that it is about.
type pool struct {
	share *Share
	obey  bool

	mu      sync.Mutex
	told    []string
	permits []*Permit
	owed    int
}

func (p *pool) note(what string) {
	p.mu.Lock()
	p.told = append(p.told, what)
	p.mu.Unlock()
}

func (p *pool) heard(what string) int {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, t := range p.told {
		if t == what {
			n++
		}
	}
	return n
}

func (p *pool) give() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.permits); n > 0 {
		p.share.Give(p.permits[n-1])
		p.permits = p.permits[:n-1]
	}
}

func (p *pool) Granted(permits []*Permit) {
	p.mu.Lock()
	p.permits = append(p.permits, permits...)
	p.told = append(p.told, "granted")
	p.mu.Unlock()
	p.pay()
}

func (p *pool) Recall(n int, _ time.Duration) {
	p.note("recall")
	if p.obey {
		p.mu.Lock()
		p.owed += n
		p.mu.Unlock()
		p.pay()
	}
}

// pay gives back what is owed, as far as the pool has it.
func (p *pool) pay() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; p.owed > 0 && len(p.permits) > 0; p.owed-- {
		p.share.Give(p.permits[0])
		p.permits = p.permits[1:]
	}
}

func (p *pool) Promised(int) { p.note("promised") }
func (p *pool) Wanted(yes bool) {
	if yes {
		p.note("wanted")
	} else {
		p.note("calm")
	}
}
func (p *pool) Lost(*Permit) { p.note("lost") }
func (p *pool) Changed()     { p.note("changed") }
func (p *pool) Owed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.owed
}

func (p *pool) Keep(n int) {
	p.note("keep")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.owed -= min(n, p.owed)
}
func (p *pool) Closed() {
	p.note("closed")
	for range 100 {
		p.give()
	}
}

func (s *session) pool(t *testing.T) *pool {
	t.Helper()
	p := &pool{}
	share, err := s.NewShare(p)
	if err != nil {
		t.Fatal(err)
	}
	p.share = share
	return p
}

// Redis forgot the permit and has room: that is a loss, not a new lease under the old name.
func TestExtensionDoesNotAcquireAnew(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 2})
		p := s.acquire(t)
		if _, err := w.redis.ZRem("passbuddy-semaphore", p.ID()); err != nil {
			t.Fatal(err)
		}
		if err := p.Acquire(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("extending what Redis forgot: %v, want ErrLost", err)
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

// One user leaves, and is about to release, when another comes and finds the permit held.
func TestLastUserToLeaveLooksAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		p := s.acquire(t)
		p.op <- struct{}{} // somebody extends it meanwhile
		first := make(chan error, 1)
		go func() { first <- p.Do(t.Context(), func(context.Context) error { return nil }) }()
		synctest.Wait()
		stay, second := make(chan struct{}), make(chan error, 1)
		go func() {
			second <- p.Do(t.Context(), func(context.Context) error {
				<-stay
				if !p.Held() {
					t.Error("the permit was released under its user")
				}
				return nil
			})
		}()
		synctest.Wait()
		<-p.op
		synctest.Wait()
		close(stay)
		if err := errors.Join(<-first, <-second); err != nil {
			t.Error(err)
		}
		if p.Held() || s.snapshot(t).Held != 0 {
			t.Error("the last to leave did not release")
		}
	})
}

// A busy pool gives nothing back by itself. A plain Acquire must not wait for ever behind it.
func TestPlainWaiterIsNotStarvedByABusyPool(t *testing.T) {
	for _, capacity := range []int{1, 4} {
		inWorld(t, func(t *testing.T, w *world) {
			a, b := w.join(Config{Capacity: capacity, MaxAttempts: -1}), w.join(Config{Capacity: capacity, MaxAttempts: -1})
			p := a.pool(t)
			for range 2 { // its even part, and the rest when nobody else has asked for a while
				p.share.Ask(capacity)
				time.Sleep(50 * time.Millisecond)
			}
			if held := a.snapshot(t).Held; held != capacity {
				t.Fatalf("bug in the test: the pool holds %d", held)
			}
			p.obey = true
			waiting := b.later(t.Context())
			time.Sleep(100 * time.Millisecond)
			if !waiting.isDone() || waiting.err != nil {
				t.Errorf("capacity %d: not served: %v", capacity, waiting.err)
			}
			if got := p.heard("recall"); got != 1 {
				t.Errorf("capacity %d: %d recalls for one waiter", capacity, got)
			}
		})
	}
}

// delay holds back heartbeats on the session's own connection.
type delay struct {
	script string
	by     time.Duration
}

func (delay) DialHook(next redis.DialHook) redis.DialHook { return next }
func (d delay) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); len(args) > 1 && args[1] == d.script {
			time.Sleep(d.by)
		}
		return next(context.WithoutCancel(ctx), cmd)
	}
}
func (delay) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A heartbeat that crosses Close would join the session anew, and its capacity would bind the fleet for a lease.
func TestHeartbeatDoesNotCrossClose(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 5}), w.join(Config{Capacity: 1})
		b.own.(*redis.Client).AddHook(delay{redisscript.RenewHash(), 300 * time.Millisecond})
		time.Sleep(1700 * time.Millisecond) // the first heartbeat is on its way
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if snap := a.snapshot(t); len(snap.Sessions) != 1 || snap.Capacity != 5 {
			t.Errorf("left behind: %+v", snap)
		}
	})
}

// The queue holds only the first UUID of a pool's request.
func TestCloseTakesAPoolsRequestOutOfTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1}), w.join(Config{Capacity: 1})
		a.acquire(t)
		p := b.pool(t)
		p.share.Ask(5)
		synctest.Wait()
		if got := len(a.snapshot(t).Waiters); got != 1 {
			t.Fatalf("bug in the test: %d waiters", got)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if got := a.snapshot(t).Waiters; len(got) != 0 {
			t.Errorf("left in the queue: %+v", got)
		}
	})
}

// What the scripts count about a pool goes with its session, however that ends and however far the counts had drifted.
func TestCountsOfAPoolEndWithItsSession(t *testing.T) {
	for _, how := range []string{"close", "crash"} {
		t.Run(how, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 3, TTL: time.Second, MaxAttempts: -1}
				a, b := w.join(cfg), w.join(cfg)
				p := b.pool(t)
				p.share.Ask(2)
				synctest.Wait()
				// A heartbeat that crossed a release, and a recall that found nothing.
				if _, err := w.redis.ZAdd("{passbuddy-semaphore}:shares", 2.8, p.share.name); err != nil {
					t.Fatal(err)
				}
				w.redis.HSet("{passbuddy-semaphore}:debts", p.share.name, "7")
				if how == "crash" {
					b.crash()
				} else if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				if got := a.snapshot(t); got.Held != 0 {
					t.Errorf("held %d", got.Held)
				}
				for _, key := range w.redis.Keys() {
					if strings.HasSuffix(key, ":shares") || strings.HasSuffix(key, ":debts") {
						t.Errorf("key %q is left", key)
					}
				}
			})
		})
	}
}

// A pool is closed while some of its connections are still ending.
func TestClosedShareLeavesWithItsLastPermit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 2})
		p := s.pool(t)
		p.want(2)
		p.share.Close()
		p.give()
		time.Sleep(5 * time.Second)
		if s.seated() != 1 {
			t.Error("a share left while it held a permit")
		}
		p.give()
		time.Sleep(5 * time.Second)
		if s.seated() != 0 {
			t.Error("a closed share without permits is kept")
		}
		if keys := w.redis.Keys(); slices.Contains(keys, "{passbuddy-semaphore}:shares") {
			t.Errorf("keys %q", keys)
		}
	})
}

// A name can hold what PUBSUB takes for a pattern.
func TestStateLossIsSeenUnderAnyName(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Name: `a[b]*?\c`, Capacity: 1}
		a := w.join(cfg)
		a.acquire(t)
		w.redis.FlushAll()
		b := w.join(cfg)
		if _, err := b.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Errorf("granted right after the loss: %v", err)
		}
		w.join(Config{Name: "x", Capacity: 1})
		if _, err := w.join(Config{Name: "*", Capacity: 1}).TryAcquire(t.Context()); err != nil {
			t.Errorf("the first permit of a new semaphore: %v", err)
		}
	})
}
