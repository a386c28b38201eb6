package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/core"
)

// A heldUp listener does not return from the call that delivers its grant until the test lets it.
type heldUp struct {
	*pool
	told chan *Permit
	on   chan struct{}
}

func (l heldUp) Granted(permits []*Permit) {
	l.told <- permits[0]
	<-l.on
	l.pool.Granted(permits)
}

// A pool that learned of a loss before the grant would keep the permit for ever.
func TestLossIsToldAfterTheGrant(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		l := heldUp{&pool{}, make(chan *Permit), make(chan struct{})}
		l.join(t, s, l)
		l.Ask(1)
		permit := <-l.told
		s.step(func(c *core.Core, now time.Duration) { c.NotHeld(now, &permit.Permit) })
		close(l.on)
		synctest.Wait()
		told := l.Told()
		if i, j := strings.Index(told, "granted"), strings.Index(told, "lost"); i < 0 || j < i {
			t.Errorf("told %q, want the loss after the grant", told)
		}
	})
}

// A busy pool gives no permit back by itself. A plain request must not wait behind it for ever.
func TestPlainWaiterIsNotStarvedByABusyPool(t *testing.T) {
	for _, capacity := range []int{1, 4} {
		inWorld(t, func(t *testing.T, w *world) {
			cfg := Config{Capacity: capacity, Patience: forever}
			a, b := w.join(cfg), w.join(cfg)
			p := a.pool(t)
			// its even part first, and the rest once no other pool has asked for a while
			for range 2 {
				p.Ask(capacity)
				time.Sleep(50 * time.Millisecond)
			}
			if held := a.state(t).Held; held != capacity {
				t.Fatalf("bug in the test: the pool holds %d", held)
			}
			p.Obey = true
			waiting := b.later(t.Context())
			time.Sleep(100 * time.Millisecond)
			if !waiting.IsDone() || waiting.Err != nil {
				t.Errorf("capacity %d: the plain request was not granted: %v", capacity,
					waiting.Err)
			}
			if got := p.Heard("recall"); got != 1 {
				t.Errorf("capacity %d: %d recalls for one waiter", capacity, got)
			}
		})
	}
}

// A heartbeat call that crosses Close would join the session anew. The capacity that it declares
// would then bind the fleet for a lease.
func TestHeartbeatDoesNotCrossClose(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 5}), w.join(Config{Capacity: 1})
		b.beforeHeartbeats(func(redis.Cmder) { time.Sleep(300 * time.Millisecond) })
		time.Sleep(1700 * time.Millisecond) // the first call is in flight
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := a.state(t); got.Sessions != 1 || got.Capacity != 5 {
			t.Errorf("left behind: %+v", got)
		}
	})
}

// A call is made, and the session leaves before it is sent. Close does not wait for its reply.
func TestACallThatIsNotSentDoesNotCrossClose(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		k := s.nextCall()
		s.step(func(c *core.Core, now time.Duration) {
			c.Close(now)
			c.Leave(now)
		})
		if _, err := s.begin(k, time.Second); !errors.Is(err, core.ErrClosed) {
			t.Errorf("begun: %v", err)
		}
		began := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("Close took %v", took)
		}
	})
}

// The queue holds only the first UUID of a pool's request.
func TestCloseTakesAPoolsRequestOutOfTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.join(Config{Capacity: 1}), w.join(Config{Capacity: 1})
		a.acquire(t)
		b.pool(t).Ask(5)
		synctest.Wait()
		if got := a.state(t).Waiters; got != 1 {
			t.Fatalf("bug in the test: %d waiters", got)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if got := a.state(t).Waiters; got != 0 {
			t.Errorf("%d requests are left in the queue", got)
		}
	})
}

// The scripts' counts of a pool end with its session, however the session ends and however wrong
// the counts are.
func TestCountsOfAPoolEndWithItsSession(t *testing.T) {
	for _, how := range []string{"close", "crash"} {
		t.Run(how, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 3, TTL: time.Second, Patience: forever}
				a, b := w.join(cfg), w.join(cfg)
				p := b.pool(t)
				p.Ask(2)
				if p.Heard("granted") == 0 {
					t.Fatal("bug in the test: nothing granted")
				}
				name := poolName(p.Permits()[0])
				// The state after a heartbeat call that crossed a release, and a recall that found
				// no permit.
				if _, err := w.Redis.ZAdd(keyBase+"levels", 2.8, name); err != nil {
					t.Fatal(err)
				}
				w.Redis.HSet(keyBase+"debts", name, "7")
				if how == "crash" {
					b.crash()
				} else if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				if got := a.state(t); got.Held != 0 {
					t.Errorf("held %d", got.Held)
				}
				for _, key := range w.Redis.Keys() {
					if strings.HasSuffix(key, ":levels") || strings.HasSuffix(key, ":debts") {
						t.Errorf("key %q is left", key)
					}
				}
			})
		})
	}
}

// A release that fails or gets no reply while Close waits is repeated when the session leaves.
func TestReleaseThatFailsDuringCloseIsRepeated(t *testing.T) {
	for _, how := range []string{"fails", "is not answered"} {
		t.Run(how, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 1, TTL: time.Minute}
				a, b := w.join(cfg), w.join(cfg)
				p := a.acquire(t)
				var mu sync.Mutex
				batches := 0
				w.Answers(t, func(c *server.Peer, cmd string, args ...string) bool {
					if cmd != "EVALSHA" || !isRelease(args, p.ID) {
						return false
					}
					mu.Lock()
					batches++
					mu.Unlock()
					if how == "fails" {
						time.Sleep(500 * time.Millisecond)
						c.WriteError("ERR it was lost")
					}
					return true
				})
				released := bubble.Later(func() (struct{}, error) { return struct{}{}, giveUp(p) })
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
				<-released.Done
				mu.Lock()
				defer mu.Unlock()
				if batches == 0 {
					t.Error("bug in the test: the release was not sent")
				}
				if got := b.state(t).Held; got != 0 {
					t.Errorf("%d held after Close, want none", got)
				}
			})
		})
	}
}

// Redis answers neither the release nor the end of the session. The caller must not hear that its
// permit is free, whether it released before Close began or while Close waits.
func TestReleaseFailsWithClose(t *testing.T) {
	for _, during := range []bool{false, true} {
		t.Run(fmt.Sprintf("during Close: %v", during), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s := w.join(Config{Capacity: 2, TTL: time.Minute})
				p, q := s.acquire(t), s.acquire(t)
				s.link.SetDeaf(true)
				later := func(f func() error) *bubble.Pending[int] {
					return bubble.Later(func() (int, error) { return 0, f() })
				}
				first := later(func() error { return giveUp(p) })
				closed := later(s.Close)
				second := first
				if during {
					second = later(func() error { return giveUp(q) })
				}
				<-closed.Done
				if !errors.Is(closed.Err, core.ErrUnavailable) {
					t.Errorf("Close: %v", closed.Err)
				}
				for _, released := range []*bubble.Pending[int]{first, second} {
					if !released.IsDone() || !errors.Is(released.Err, core.ErrUnavailable) {
						t.Errorf("Release has ended: %v, with %v", released.IsDone(), released.Err)
					}
				}
				s.link.SetDeaf(false)
			})
		})
	}
}

// isRelease reports whether args are the arguments of a batch that releases the given plain permit.
// In the arguments of the script leave, a UUID does not stand alone.
func isRelease(args []string, id string) bool {
	for _, arg := range args {
		if arg == id {
			return true
		}
	}
	return false
}

// A waiter asks again within RetryInterval, not later.
func TestAskingAgainIsWithinRetryInterval(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, RetryInterval: 400 * time.Millisecond, Patience: forever}
		for range 20 {
			a, b := w.join(cfg), w.join(cfg)
			p := a.acquire(t)
			waiting := b.later(t.Context())
			b.loseSubscription(t)
			release(t, p)
			<-waiting.Done
			if waiting.Err != nil || waiting.Took > cfg.RetryInterval {
				t.Fatalf("granted after %v: %v", waiting.Took, waiting.Err)
			}
			a.crash()
			b.crash()
			time.Sleep(10 * time.Second)
		}
	})
}

// A push that is lost costs no more than RetryInterval.
func TestLostPushCostsOnlyTime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 1, RetryInterval: 300 * time.Millisecond}
		a, b := w.join(cfg), w.join(cfg)
		p := a.acquire(t)
		waiting := b.later(t.Context())
		b.loseSubscription(t) // from here on no push reaches b
		release(t, p)
		if waiting.IsDone() {
			t.Fatal("bug in the test: the push was not lost")
		}
		<-waiting.Done
		if waiting.Err != nil || waiting.Took > 400*time.Millisecond {
			t.Fatalf("granted after %v: %v, want within RetryInterval", waiting.Took, waiting.Err)
		}
	})
}

// cutsReply loses the reply to the next batch, as a connection does that is reset.
type cutsReply struct{ cut bool }

func (h *cutsReply) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h *cutsReply) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if !h.cut && cmd.Name() == "evalsha" {
			h.cut, err = true, io.EOF
			cmd.SetErr(err)
		}
		return err
	}
}
func (h *cutsReply) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A release frees a permit that another caller of the session waits for. The reply would have told
// of the grant, and is lost. The reply to the copy of that batch does not tell of it.
func TestALostReplyToAReleaseDoesNotHoldUpAWaiter(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1, RetryInterval: 2 * time.Second})
		p := s.acquire(t)
		waiting := s.later(t.Context())
		hook := &cutsReply{}
		s.clients.batches.(*redis.Client).AddHook(hook)
		began := time.Now()
		release(t, p)
		<-waiting.Done
		if !hook.cut || waiting.Err != nil {
			t.Fatalf("reply cut: %v, granted: %v", hook.cut, waiting.Err)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("told of its grant after %v", took)
		}
	})
}

// The session soon subscribes again, and then receives the recall that was pushed meanwhile.
func TestLostRecall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.join(Config{Capacity: 1, TTL: time.Minute})
		b := w.join(Config{Capacity: 1, TTL: time.Minute, Patience: forever})
		p := a.pool(t)
		p.Obey = true
		p.Ask(1)
		if p.Heard("granted") != 1 {
			t.Fatal("bug in the test: the pool was not granted the permit")
		}
		a.link.SetCut(true) // for an instant, in which Redis pushes the recall
		q := b.later(t.Context())
		a.link.SetCut(false)
		<-q.Done
		if q.Took > time.Second {
			t.Errorf("waited %v, though the session had subscribed again long before: %q", q.Took,
				p.Told())
		}
	})
}
