package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/subset"
)

func notLost(t *testing.T, p *Permit) {
	t.Helper()
	select {
	case <-p.Lost():
		t.Error("lease lost, though Redis answered in time")
	default:
	}
}

// Open makes three round trips in a row: the connection's handshake, joining, subscribing.
func TestOpenTakesThreeRoundTrips(t *testing.T) {
	for _, reply := range []time.Duration{500 * time.Millisecond, 1600 * time.Millisecond} {
		t.Run(reply.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				began := time.Now()
				s, l := w.slowJoin(Config{Capacity: 1}, bubble.Always(reply/2))
				if took := time.Since(began); took > 3*reply+100*time.Millisecond {
					t.Errorf("Open took %v, at %v a reply", took, reply)
				}
				began = time.Now()
				p := s.acquire(t) // scripts are loaded and connections are open
				if took := time.Since(began); took > reply+100*time.Millisecond {
					t.Errorf("the first permit took %v, at %v a reply", took, reply)
				}
				l.SetDelay(bubble.Always(0))
				release(t, p)
			})
		})
	}
}

// The session renews its leases over a network that is slow, from the start or suddenly, as long as
// replies come within the trusted time. No request fails.
func TestSlowRepliesLoseNoLease(t *testing.T) {
	type slowness struct {
		name        string
		first, then func() time.Duration
	}
	for _, c := range subset.Of(t, 2, []slowness{
		{"300 ms each way", bubble.About(300 * time.Millisecond),
			bubble.About(300 * time.Millisecond)},
		{"700 ms each way", bubble.About(700 * time.Millisecond),
			bubble.About(700 * time.Millisecond)},
		{"40 % of a lease, all of a sudden", bubble.Always(0), bubble.Always(time.Second)},
		{"2.6 s once, for the first grant", nil, bubble.About(300 * time.Millisecond)},
	}) {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 12, Patience: forever}
				var wg sync.WaitGroup
				ends := time.Now().Add(time.Minute)
				for i := range 4 {
					first := c.first
					if first == nil {
						first = bubble.About(300 * time.Millisecond)
					}
					s, l := w.slowJoin(cfg, first)
					if c.first == nil {
						l.SetDelay(bubble.Always(1300 * time.Millisecond))
						time.AfterFunc(2600*time.Millisecond, func() { l.SetDelay(c.then) })
					} else {
						l.SetDelay(c.then)
					}
					for range 3 {
						wg.Go(func() {
							for time.Now().Before(ends) {
								p, err := s.get(context.Background())
								if err != nil {
									t.Error(err)
									return
								}
								time.Sleep(rand.N(10 * time.Second))
								notLost(t, p)
								// A release waits for at most a lease. Behind two batches that is
								// not always enough.
								if err := giveUp(p); err != nil &&
									!errors.Is(err, core.ErrUnavailable) {
									t.Error(err)
								}
								time.Sleep(rand.N(time.Second))
							}
						})
					}
					if i == 0 { // TryAcquire waits for its reply like all other requests
						wg.Go(func() {
							for range 5 {
								time.Sleep(rand.N(10 * time.Second))
								p, err := s.try(context.Background())
								if err == nil {
									_ = giveUp(p)
								} else if !errors.Is(err, core.ErrCapacity) {
									t.Error(err)
								}
							}
						})
					}
				}
				wg.Wait()
			})
		})
	}
}

// The same with a single permit and no other traffic. Only the heartbeat's calls renew it.
func TestSuddenlySlowRepliesLoseNoLease(t *testing.T) {
	for _, each := range []time.Duration{700 * time.Millisecond, 900 * time.Millisecond} {
		for range subset.Length(2, 10) {
			inWorld(t, func(t *testing.T, w *world) {
				s, l := w.slowJoin(Config{Capacity: 2, Patience: forever}, bubble.Always(0))
				p := s.acquire(t)
				time.Sleep(rand.N(5 * time.Second))
				l.SetDelay(bubble.Always(each))
				time.Sleep(time.Minute)
				if !p.Held() {
					t.Errorf("%v each way: lease lost, though Redis answered in time", each)
				}
				l.SetDelay(bubble.Always(0))
			})
		}
	}
}

// If no call has been answered for a lease, the session sends nothing that Redis would refuse.
// Batches wait for the first answer to a call.
func TestABatchWaitsForACall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 2, Patience: forever}, bubble.Always(0))
		time.Sleep(time.Second)
		l.Silence(true)
		time.Sleep(6 * time.Second)
		l.Heal()
		l.SetDelay(bubble.Always(500 * time.Millisecond))
		last := s.lastCall()
		for s.lastCall() == last {
			time.Sleep(time.Millisecond)
		}
		began := time.Now()
		p := s.acquire(t)
		// the call over a new connection, then the batch
		if took := time.Since(began); took > 3*time.Second+100*time.Millisecond {
			t.Errorf("the permit took %v", took)
		}
		release(t, p)
	})
}

func (s *session) lastCall() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.LastCall()
}

// A NAT forgets the connections, without FIN or RST. The session hedges the calls that hang on them
// over new connections.
func TestForgottenConnectionsLoseNoLease(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
		t.Run(ttl.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s, l := w.slowJoin(Config{Capacity: 2, TTL: ttl, Patience: forever},
					bubble.Always(time.Millisecond))
				p := s.acquire(t)
				for range 3 {
					time.Sleep(rand.N(2 * ttl))
					l.Forget()
					began := time.Now()
					q, err := s.try(t.Context())
					if err != nil {
						t.Error(err)
						continue
					}
					if took := time.Since(began); took > min(ttl, 3*time.Second) {
						t.Errorf("acquiring a free permit took %v", took)
					}
					release(t, q)
				}
				time.Sleep(3 * ttl)
				notLost(t, p)
			})
		})
	}
}

// The same where Redis was slow not long ago, and the session hedged many calls. It keeps few of
// the connections opened for that, so a call soon gets a new one.
func TestForgottenConnectionsOfASlowTimeLoseNoLease(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
		for range subset.Length(2, 5) {
			inWorld(t, func(t *testing.T, w *world) {
				s, l := w.slowJoin(Config{Capacity: 2, TTL: ttl, Patience: forever},
					bubble.Always(time.Millisecond))
				p := s.acquire(t)
				l.SetDelay(bubble.Always(10 * time.Millisecond))
				var calls sync.WaitGroup
				for range 8 { // as hedges do, and records of backends
					calls.Go(func() { _ = s.clients.own.Ping(t.Context()).Err() })
				}
				calls.Wait()
				l.SetDelay(bubble.Always(time.Millisecond))
				time.Sleep(rand.N(ttl))
				l.Forget()
				time.Sleep(3 * ttl)
				notLost(t, p)
			})
		}
	}
}

// An operator asks now and then. Between two questions the connections are forgotten.
func TestForgottenConnectionsDelayNoOperator(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 2, Patience: forever}, bubble.Always(time.Millisecond))
		for n := 2; n < 5; n++ {
			time.Sleep(15 * time.Second)
			l.Forget()
			began := time.Now()
			if err := s.SetCapacity(t.Context(), n); err != nil {
				t.Error(err)
			}
			if got := s.state(t).Capacity; got != n {
				t.Errorf("capacity %d, want %d", got, n)
			}
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("the operator's calls took %v", took)
			}
		}
	})
}

// Redis answers late, and a moment later the connections are forgotten. Replies are still expected
// to take long, so hedges follow each other slowly: few may be spent on connections that are dead.
func TestForgottenConnectionsAfterLateRepliesLoseNoLease(t *testing.T) {
	for range subset.Length(4, 20) {
		inWorld(t, func(t *testing.T, w *world) {
			const ttl = 5 * time.Second
			s, l := w.slowJoin(Config{Capacity: 2, TTL: ttl, Patience: forever},
				bubble.Always(time.Millisecond))
			p := s.acquire(t)
			l.SetDelay(bubble.Always(time.Second)) // each way
			time.Sleep(2 * ttl)
			l.SetDelay(bubble.Always(time.Millisecond))
			time.Sleep(2*time.Second + rand.N(3*ttl))
			l.Forget()
			time.Sleep(3 * ttl)
			notLost(t, p)
		})
	}
}

// A reply that comes with a moment of trust left counts.
func TestALateReplyCounts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 1}, bubble.Always(0))
		p := s.acquire(t)
		time.Sleep(time.Second)
		// The session sends the next call before 1.7 s. Its reply, and the replies of its hedges,
		// come 2.7 s later. The lease of the grant is trusted until 4.5 s.
		l.SetDelay(bubble.Always(1350 * time.Millisecond))
		time.Sleep(4 * time.Second)
		l.SetDelay(bubble.Always(0))
		time.Sleep(5 * time.Second)
		notLost(t, p)
	})
}

// Redis is away for longer than a lease. The leases are lost, and afterwards the session works
// again.
func TestLeasesAreLostWhenRedisIsSilent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 1}, bubble.Always(0))
		p := s.acquire(t)
		before := s.lastCall()
		l.Silence(true)
		time.Sleep(4600 * time.Millisecond)
		if p.Held() {
			t.Error("held without proof")
		}
		s.mu.Lock()
		// none of the calls was answered, and none has ended
		down, calls := s.core.Down(), s.core.LastCall()-before
		s.mu.Unlock()
		if down == nil || calls > core.MaxCalls {
			t.Errorf("down %v, %d calls on their way", down, calls)
		}
		time.Sleep(time.Minute)
		l.Silence(false)
		time.Sleep(11 * time.Second) // a subscription gets two pings before it is replaced
		release(t, p)
		s.acquire(t)
	})
}

// Replies arrive in another order than the calls were sent. The reply of the later call decides.
func TestRepliesInAnotherOrder(t *testing.T) {
	t.Run("released meanwhile, and put back", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s := w.join(Config{Capacity: 2})
			p := s.acquire(t)
			first, second := s.nextCall(), s.nextCall()
			w.Redis.FlushAll()
			s.step(func(c *core.Core, now time.Duration) { c.CallFailed(now, second, errSilent) })
			s.finish(first, time.Second) // re-asserts it
			release(t, p)
			s.finish(s.nextCall(), time.Second)
			synctest.Wait()
			if got := s.state(t).Held; got != 0 {
				t.Errorf("%d held, want none", got)
			}
		})
	})
	t.Run("a pool that has closed", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s := w.join(Config{Capacity: 2})
			p := s.pool(t)
			p.Ask(1)
			p.Heard("granted")
			first := s.nextCall() // reports one permit for the pool
			p.GiveBack()
			p.Close()
			synctest.Wait()
			if err := s.beat(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.finish(first, time.Second)
			if err := s.beat(t.Context()); err != nil {
				t.Fatal(err)
			}
			if held := w.held(); len(held) != 0 {
				t.Errorf("Redis counts what %q hold", held)
			}
			if s.seated() != 0 {
				t.Error("the pool still has a number")
			}
		})
	})
}

// Close leaves nothing behind, whatever is in flight, and however slow Redis is.
func TestCloseLeavesNothingBehind(t *testing.T) {
	for _, d := range []time.Duration{0, 300 * time.Millisecond, 700 * time.Millisecond} {
		for _, after := range []time.Duration{0, d / 2, d, d * 3 / 2, 1700 * time.Millisecond,
			1700*time.Millisecond + d/2} {
			t.Run(fmt.Sprint(d, " each way, after ", after), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					other := w.join(Config{Capacity: 6})
					s, l := w.slowJoin(Config{Capacity: 6, Patience: forever}, bubble.Always(d))
					p := s.acquire(t)
					var wg sync.WaitGroup
					for range 3 {
						wg.Go(func() { _, _ = s.get(context.Background()) })
					}
					time.Sleep(after)
					go func() { _ = giveUp(p) }()
					time.Sleep(after / 3)
					began := time.Now()
					if err := s.Close(); err != nil {
						t.Errorf("Close: %v after %v", err, time.Since(began))
					}
					wg.Wait()
					time.Sleep(2 * time.Second)
					if snap := other.state(t); snap.Held != 0 || snap.Waiters != 0 ||
						snap.Sessions != 1 {
						t.Errorf("left behind: %+v", snap)
					}
					l.SetDelay(bubble.Always(0))
				})
			})
		}
	}
}
