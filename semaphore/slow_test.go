package semaphore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// A slowLink is a network that takes its time. Bytes of one connection stay in order.
type slowLink struct {
	w *world

	mu    sync.Mutex
	delay func() time.Duration // each way
	holes int                  // connections opened so far whose bytes vanish
	conns int
}

func (l *slowLink) set(delay func() time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = delay
}

func always(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// about is d, half of it more or less.
func about(d time.Duration) func() time.Duration {
	return func() time.Duration { return d/2 + rand.N(d) }
}

// forget has the connections that are open now lead nowhere, without a word.
func (l *slowLink) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holes = l.conns
}

// silence has all that is sent vanish, until it is ended.
func (l *slowLink) silence(yes bool) {
	l.forget()
	if yes {
		l.mu.Lock()
		l.holes = 1 << 30
		l.mu.Unlock()
	}
}

func (l *slowLink) dial(context.Context, string, string) (net.Conn, error) {
	server, err := l.w.redis.Dial()
	if err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	l.mu.Lock()
	l.conns++
	number := l.conns
	l.mu.Unlock()
	pump := func(to, from net.Conn) {
		type piece struct {
			b  []byte
			at time.Time
		}
		pieces := make(chan piece, 1000)
		go func() {
			defer to.Close()
			for p := range pieces {
				time.Sleep(time.Until(p.at))
				l.mu.Lock()
				gone := number <= l.holes
				l.mu.Unlock()
				if gone {
					continue
				}
				if _, err := to.Write(p.b); err != nil {
					from.Close()
				}
			}
		}()
		defer close(pieces)
		for {
			b := make([]byte, 64<<10)
			n, err := from.Read(b)
			if err != nil {
				return
			}
			l.mu.Lock()
			d := l.delay()
			l.mu.Unlock()
			pieces <- piece{b[:n], time.Now().Add(d)}
		}
	}
	go pump(server, theirs)
	go pump(theirs, server)
	return ours, nil
}

// slowJoin opens a session over a link of its own.
func (w *world) slowJoin(cfg Config, delay func() time.Duration) (*session, *slowLink) {
	w.t.Helper()
	l := &slowLink{w: w, delay: delay}
	cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", Dialer: l.dial, DialerRetries: 1})
	s, err := New(c, cfg)
	if err != nil {
		w.t.Fatalf("New: %v", err)
	}
	w.t.Cleanup(func() {
		l.set(always(0))
		_ = s.Close()
		_ = c.Close()
	})
	return &session{Semaphore: s, client: c}, l
}

func notLost(t *testing.T, p *Permit) {
	t.Helper()
	select {
	case <-p.Lost():
		t.Error("lease lost, though Redis answered in time")
	default:
	}
}

// The connection's handshake, joining, subscribing.
func TestNewTakesThreeRoundTrips(t *testing.T) {
	for _, reply := range []time.Duration{500 * time.Millisecond, 1600 * time.Millisecond} {
		t.Run(reply.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				began := time.Now()
				s, l := w.slowJoin(Config{Capacity: 1}, always(reply/2))
				if took := time.Since(began); took > 3*reply+100*time.Millisecond {
					t.Errorf("New took %v, at %v a reply", took, reply)
				}
				began = time.Now()
				p := s.acquire(t) // nothing is to be loaded any more, nor connected
				if took := time.Since(began); took > reply+100*time.Millisecond {
					t.Errorf("the first permit took %v, at %v a reply", took, reply)
				}
				l.set(always(0))
				release(t, p)
			})
		})
	}
}

// Leases are renewed over a network that is slow, from the start or all of a sudden, as long as replies come
// within the trusted time. Nothing that is asked for fails.
func TestSlowRepliesLoseNoLease(t *testing.T) {
	for _, c := range []struct {
		name        string
		first, then func() time.Duration
	}{
		{"300 ms each way", about(300 * time.Millisecond), about(300 * time.Millisecond)},
		{"700 ms each way", about(700 * time.Millisecond), about(700 * time.Millisecond)},
		{"40 % of a lease, all of a sudden", always(0), always(time.Second)},
		{"2.6 s once, for the first grant", nil, about(300 * time.Millisecond)},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				cfg := Config{Capacity: 12, MaxAttempts: -1}
				var wg sync.WaitGroup
				ends := time.Now().Add(time.Minute)
				for i := range 4 {
					first := c.first
					if first == nil {
						first = about(300 * time.Millisecond)
					}
					s, l := w.slowJoin(cfg, first)
					if c.first == nil {
						l.set(always(1300 * time.Millisecond))
						time.AfterFunc(2600*time.Millisecond, func() { l.set(c.then) })
					} else {
						l.set(c.then)
					}
					for range 3 {
						wg.Go(func() {
							for time.Now().Before(ends) {
								p, err := s.Acquire(context.Background())
								if err != nil {
									t.Error(err)
									return
								}
								time.Sleep(rand.N(10 * time.Second))
								notLost(t, p)
								// It waits for a lease at most; behind two flights that is not always enough.
								if err := p.Release(context.Background()); err != nil && !errors.Is(err, ErrUnavailable) {
									t.Error(err)
								}
								time.Sleep(rand.N(time.Second))
							}
						})
					}
					if i == 0 { // TryAcquire waits for its reply like all others
						wg.Go(func() {
							for range 5 {
								time.Sleep(rand.N(10 * time.Second))
								p, err := s.TryAcquire(context.Background())
								if err == nil {
									_ = p.Release(context.Background())
								} else if !errors.Is(err, ErrCapacity) {
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

// The same with a single permit and no other traffic: only the heartbeat's calls renew it.
func TestSuddenlySlowRepliesLoseNoLease(t *testing.T) {
	for _, each := range []time.Duration{700 * time.Millisecond, 900 * time.Millisecond} {
		for range subset.Length(4, 10) {
			inWorld(t, func(t *testing.T, w *world) {
				s, l := w.slowJoin(Config{Capacity: 2, MaxAttempts: -1}, always(0))
				p := s.acquire(t)
				time.Sleep(rand.N(5 * time.Second))
				l.set(always(each))
				time.Sleep(time.Minute)
				if !p.Held() {
					t.Errorf("%v each way: lease lost, though Redis answered in time", each)
				}
				l.set(always(0))
			})
		}
	}
}

// A push that tells once more of a grant does not answer the request that is to extend it: that would be sent
// one flight later, which a slow Redis may answer too late.
func TestAnOldGrantExtendsNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		p := s.acquire(t)
		time.Sleep(time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.flying = true // this test flies itself
		defer func() { s.flying = false }()
		before := s.sinceStart() - time.Second
		a := s.newAsk(redisscript.Hold, nil, p)
		a.extends = true
		s.submit(a)
		s.granted([]string{p.id}, before)
		if a.settled {
			t.Error("settled by what was granted before it was asked for")
		}
		if b := s.nextBatch(); len(b.asks) != 1 {
			t.Errorf("%d requests in the next flight, want the extension", len(b.asks))
		}
		s.granted([]string{p.id}, s.sinceStart())
		if !a.settled {
			t.Error("not settled by its own answer")
		}
	})
}

// A grant of which a session hears so late that no renewal can be answered in time is asked for again, not
// held and lost. But where every reply takes that long, it is held.
func TestALateGrantIsAskedForAgain(t *testing.T) {
	for _, c := range []struct {
		rtt, left time.Duration
		held      bool
	}{
		{rtt: 2 * time.Second, left: 1900 * time.Millisecond, held: false},
		{rtt: 2 * time.Second, left: 2100 * time.Millisecond, held: true},
		{rtt: time.Millisecond, left: 2 * time.Millisecond, held: true},
		{rtt: 0, left: 0, held: false},
		{rtt: 2300 * time.Millisecond, left: time.Second, held: true},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			s := w.join(Config{Capacity: 1}) // leases of 5 s, 4.5 of them trusted
			time.Sleep(10 * time.Second)
			p := s.NewPermit()
			s.mu.Lock()
			defer s.mu.Unlock()
			s.flying = true // this test flies itself
			defer func() { s.flying = false }()
			s.heart.rtt = c.rtt
			a := s.newAsk(redisscript.Wait, nil, p)
			s.submit(a)
			s.nextBatch()
			s.granted(a.ids, s.sinceStart()+c.left-s.cfg.TTL+s.margin)
			if held := s.permits[p.id] != nil; held != c.held {
				t.Errorf("held with %v left, at %v a reply: %v", c.left, c.rtt, held)
			}
			if again := a.queued; again == c.held {
				t.Errorf("asked for again with %v left, at %v a reply: %v", c.left, c.rtt, again)
			}
			delete(s.permits, p.id)
		})
	}
}

// While no call has been answered for a lease, nothing is sent that Redis would refuse: what is to be sent
// waits for whichever call is answered first.
func TestAFlightWaitsForACall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 2, MaxAttempts: -1}, always(0))
		time.Sleep(time.Second)
		l.silence(true)
		time.Sleep(6 * time.Second)
		l.mu.Lock()
		l.holes = 0
		l.mu.Unlock()
		l.set(always(500 * time.Millisecond))
		last := s.lastCall()
		for s.lastCall() == last {
			time.Sleep(time.Millisecond)
		}
		began := time.Now()
		p := s.acquire(t)
		if took := time.Since(began); took > 3*time.Second+100*time.Millisecond { // the call, over a new connection, then the flight
			t.Errorf("the permit took %v", took)
		}
		release(t, p)
	})
}

func (s *session) lastCall() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heart.last
}

// A NAT forgets the connections: neither FIN nor RST. The calls that hang on them are hedged over new ones.
func TestForgottenConnectionsLoseNoLease(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
		t.Run(ttl.String(), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s, l := w.slowJoin(Config{Capacity: 2, TTL: ttl, MaxAttempts: -1}, always(time.Millisecond))
				p := s.acquire(t)
				for range 3 {
					time.Sleep(rand.N(2 * ttl))
					l.forget()
					began := time.Now()
					q, err := s.TryAcquire(t.Context())
					if err != nil {
						t.Error(err)
						continue
					}
					if took := time.Since(began); took > min(ttl, 3*time.Second) {
						t.Errorf("a permit that is free took %v", took)
					}
					release(t, q)
				}
				time.Sleep(3 * ttl)
				notLost(t, p)
			})
		})
	}
}

// The same where Redis was slow not long ago, and many calls were hedged: of the connections that were opened
// for that, so few are kept that a call soon finds a new one.
func TestForgottenConnectionsOfASlowTimeLoseNoLease(t *testing.T) {
	for _, ttl := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
		for range 5 {
			inWorld(t, func(t *testing.T, w *world) {
				s, l := w.slowJoin(Config{Capacity: 2, TTL: ttl, MaxAttempts: -1}, always(time.Millisecond))
				p := s.acquire(t)
				l.set(always(10 * time.Millisecond))
				var calls sync.WaitGroup
				for range 8 { // as hedges do, and records of backends
					calls.Go(func() { _ = s.own.Ping(t.Context()).Err() })
				}
				calls.Wait()
				l.set(always(time.Millisecond))
				time.Sleep(rand.N(ttl))
				l.forget()
				time.Sleep(3 * ttl)
				notLost(t, p)
			})
		}
	}
}

// A reply that comes with a moment of trust left counts.
func TestALateReplyCounts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 1}, always(0))
		p := s.acquire(t)
		time.Sleep(time.Second)
		// The next call leaves before 1.7 s, its reply and those of all that hedge it come 2.7 s later: the
		// lease of the grant is trusted until 4.5 s.
		l.set(always(1350 * time.Millisecond))
		time.Sleep(4 * time.Second)
		l.set(always(0))
		time.Sleep(5 * time.Second)
		notLost(t, p)
	})
}

// Redis is away for longer than a lease: all is as it should be afterwards.
func TestLeasesAreLostWhenRedisIsSilent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 1}, always(0))
		p := s.acquire(t)
		l.silence(true)
		time.Sleep(4600 * time.Millisecond)
		if p.Held() {
			t.Error("held without proof")
		}
		s.mu.Lock()
		down, calls := s.down, len(s.heart.calls)
		s.mu.Unlock()
		if down == nil || calls > callsMost {
			t.Errorf("down %v, %d calls on their way", down, calls)
		}
		time.Sleep(time.Minute)
		l.silence(false)
		time.Sleep(11 * time.Second) // a subscription is asked twice before it is replaced
		release(t, p)
		s.acquire(t)
	})
}

// Calls are answered in another order than they were sent in. What the later one says stays.
func TestRepliesInAnotherOrder(t *testing.T) {
	type reply struct{ got redisscript.Renewed }
	setUp := func(t *testing.T, w *world) (s *session, p *Permit, first, second *call) {
		s = w.join(Config{Capacity: 2})
		p = s.acquire(t)
		s.mu.Lock()
		defer s.mu.Unlock()
		first = s.gather()
		second = s.gather()
		second.sent += time.Second / 2
		return s, p, first, second
	}
	answer := func(s *session, at int64, capacity int64, missing ...string) reply {
		return reply{redisscript.Renewed{Now: at, Epoch: s.epoch, Capacity: capacity, Missing: missing}}
	}
	for name, c := range map[string]struct {
		firstAt, secondAt         int64
		firstMisses, secondMisses bool
		lost                      bool
	}{
		"both confirm":                         {10, 20, false, false, false},
		"missed first, confirmed later":        {10, 20, true, false, false},
		"confirmed first, missed later":        {10, 20, false, true, true},
		"executed in another order, too":       {20, 10, true, false, true},
		"executed in another order, confirmed": {20, 10, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s, p, first, second := setUp(t, w)
				missing := func(yes bool) []string {
					if yes {
						return []string{p.id}
					}
					return nil
				}
				s.callAnswered(second, answer(s, c.secondAt, 7, missing(c.secondMisses)...).got)
				trusted := p.trusted.Load()
				s.callAnswered(first, answer(s, c.firstAt, 5, missing(c.firstMisses)...).got)
				if p.Held() == c.lost {
					t.Errorf("held: %v", p.Held())
				}
				if !c.lost && p.trusted.Load() != trusted {
					t.Error("the older reply has changed what is trusted")
				}
				if s.capacity != 7 {
					t.Errorf("capacity %d: the older reply has the last word", s.capacity)
				}
			})
		})
	}
	t.Run("of a state that is lost", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s, p, first, second := setUp(t, w)
			old := answer(s, 10, 2, p.id).got
			lost := answer(s, 5, 2).got
			lost.Epoch = "another"
			s.callAnswered(second, lost)
			s.callAnswered(first, old)
			if !p.Held() || s.epoch != "another" {
				t.Errorf("held %v, epoch %q", p.Held(), s.epoch)
			}
		})
	})
	t.Run("released meanwhile, and put back", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s, p, first, second := setUp(t, w)
			w.redis.FlushAll()
			s.callFailed(second, errSilent)
			s.carryCall(first, time.Second) // re-asserts it
			first.renew.NewEpoch = "unused"
			release(t, p)
			s.mu.Lock()
			third := s.gather()
			s.mu.Unlock()
			s.carryCall(third, time.Second)
			synctest.Wait()
			if got := s.snapshot(t).Held; got != 0 {
				t.Errorf("%d held", got)
			}
		})
	})
	t.Run("a pool that has closed", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			s := w.join(Config{Capacity: 2})
			pool := s.pool(t)
			pool.share.Ask(1)
			pool.heard("granted")
			s.mu.Lock()
			first := s.gather() // says that it holds one
			s.mu.Unlock()
			pool.give()
			pool.share.Close()
			synctest.Wait()
			if err := s.beat(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.carryCall(first, time.Second)
			if err := s.beat(t.Context()); err != nil {
				t.Fatal(err)
			}
			if held, _ := w.redis.HKeys("{passbuddy-semaphore}:held"); len(held) != 0 {
				t.Errorf("Redis counts what %q hold", held)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.shares) != 0 {
				t.Error("the pool is still there")
			}
		})
	})
}

// Close leaves nothing behind, whatever is on its way, and however slow Redis is.
func TestCloseLeavesNothingBehind(t *testing.T) {
	for _, d := range []time.Duration{0, 300 * time.Millisecond, 700 * time.Millisecond} {
		for _, after := range []time.Duration{0, d / 2, d, d * 3 / 2, 1700 * time.Millisecond, 1700*time.Millisecond + d/2} {
			t.Run(fmt.Sprint(d, " each way, after ", after), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					other := w.join(Config{Capacity: 6})
					s, l := w.slowJoin(Config{Capacity: 6, MaxAttempts: -1}, always(d))
					p := s.acquire(t)
					var wg sync.WaitGroup
					for range 3 {
						wg.Go(func() { _, _ = s.Acquire(context.Background()) })
					}
					time.Sleep(after)
					go func() { _ = p.Release(context.Background()) }()
					time.Sleep(after / 3)
					began := time.Now()
					if err := s.Close(); err != nil {
						t.Errorf("Close: %v after %v", err, time.Since(began))
					}
					wg.Wait()
					time.Sleep(2 * time.Second)
					if snap := other.snapshot(t); snap.Held != 0 || len(snap.Waiters) != 0 || len(snap.Sessions) != 1 {
						t.Errorf("left behind: %+v", snap)
					}
					l.set(always(0))
				})
			})
		}
	}
}
