package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// WakeAt is no later than any timer of the core. A Tick at that timer does its work, and no earlier
// Tick does. In all tests, pass also checks that an early Tick does nothing.
func TestTimers(t *testing.T) {
	for name, arm := range map[string]func(s *stage) (in time.Duration, fired func() bool){
		"trust ends": func(s *stage) (time.Duration, func() bool) {
			p := s.acquire()
			return p.TrustedUntil() - s.now, func() bool { return p.State() == Lost }
		},
		"what waits is asked for again": func(s *stage) (time.Duration, func() bool) {
			s.wantsOne(message.Wait)
			s.answer(s.batch(), queued)
			s.seen = Effects{}
			return s.cfg.RetryInterval * 7 / 8, func() bool { return s.seen.Flush }
		},
		"what failed is repeated": func(s *stage) (time.Duration, func() bool) {
			s.release(s.acquire())
			s.BatchFailed(s.now, s.batch(), Failed, errors.New("connection reset"))
			s.take()
			s.seen = Effects{}
			return MaxRetryPause, func() bool { return s.seen.Flush }
		},
		"a batch is looked at": func(s *stage) (time.Duration, func() bool) {
			s.wantsOne(message.Wait)
			s.batch()
			s.seen = Effects{}
			return s.deadAfter(), func() bool { return s.seen.Heartbeat }
		},
		"a pool's request is withdrawn": func(s *stage) (time.Duration, func() bool) {
			p := s.pool()
			p.ask(1)
			s.batch()
			p.ask(0)
			return withdrawAfter, func() bool { return p.request == nil }
		},
		"a pool asks again for a number": func(s *stage) (time.Duration, func() bool) {
			p := &pool{s: s}
			p.Owner = p
			s.numbers = maxPools
			p.ask(1)
			if p.seated || !s.seen.Heartbeat {
				s.tb.Error("the pool has a number already, or no call is made that could free one")
			}
			s.vacant = append(s.vacant, vacancy{number: 7})
			return MaxRetryPause, func() bool { return p.seated && p.request != nil }
		},
		"what is blocked fails": func(s *stage) (time.Duration, func() bool) {
			_, r := s.wantsOne(message.Try)
			s.BatchFailed(s.now, s.batch(), Gone, message.ErrGone)
			return s.Silence(), func() bool { return r.err != nil }
		},
		"the heartbeat": func(s *stage) (time.Duration, func() bool) {
			return ttl / 3, func() bool { return s.seen.Heartbeat }
		},
		"a hedge of the heartbeat": func(s *stage) (time.Duration, func() bool) {
			s.call()
			return s.HedgeAfter(), func() bool { return s.seen.Heartbeat }
		},
		"a heartbeat that failed": func(s *stage) (time.Duration, func() bool) {
			s.CallFailed(s.now, s.call(), errors.New("connection reset"))
			return ttl / 12, func() bool { return s.seen.Heartbeat }
		},
		"the renewal of a grant that was long on its way": func(s *stage) (time.Duration, func() bool) {
			p, _ := s.wantsOne(message.Wait)
			s.answer(s.batch(), queued)
			s.pass(ttl / 12)
			s.renew(s.call())
			at := s.now - ttl/4
			s.grantPushed(at, p.ID)
			s.seen = Effects{}
			return at + ttl - margin - s.allowance() - s.now, func() bool { return s.seen.Heartbeat }
		},
		"Redis is silent": func(s *stage) (time.Duration, func() bool) {
			s.beat = func(*Call) {}
			s.call()
			return s.Silence(), func() bool { return s.Down() != nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			in, fired := arm(s)
			if s.take(); s.WakeAt() == 0 || s.WakeAt() > s.now+in {
				t.Errorf("WakeAt is %v, the timer is due at %v", s.WakeAt(), s.now+in)
			}
			if s.pass(in - 1); fired() {
				t.Error("the work is done before it is due")
			}
			if s.pass(1); !fired() {
				t.Errorf("the work is not done when it is due, in %v", in)
			}
		})
	}
}

// A renewed permit is not lost when its first trust ends. The timer finds the later end.
func TestTrustThatIsExtendedMovesTheTimer(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.acquire()
	s.pass(time.Second)
	q := s.acquire()
	s.renew(s.call()) // both
	s.release(q)
	s.pass(p.TrustedUntil() - s.now - 1)
	if p.State() != Held {
		t.Fatal("the permit is lost while it is trusted")
	}
	if s.pass(1); p.State() != Lost || q.State() != Released {
		t.Errorf("the permits are in states %d and %d, want Lost and Released",
			p.State(), q.State())
	}
}

// A session that has not joined has no heartbeat. A session that has left does nothing.
func TestNoTimersBeforeJoiningAndAfterLeaving(t *testing.T) {
	c := New(Config{TTL: ttl, Margin: margin, Capacity: 1})
	if c.WakeAt() != 0 {
		t.Errorf("WakeAt is %v before anything happened", c.WakeAt())
	}
	s := start(t, Config{Capacity: 2})
	s.acquire()
	s.wantsOne(message.Wait)
	s.batch()
	s.Close(s.now)
	s.Leave(s.now)
	s.take()
	s.seen = Effects{}
	for range 100 {
		s.now += time.Second
		s.Tick(s.now)
		s.take()
	}
	if s.seen.Flush || s.seen.Heartbeat || s.seen.Resend != nil || len(s.seen.Settled)+len(s.seen.Events) != 0 {
		t.Errorf("a session that has left has the effects %+v", s.seen)
	}
}

// Jitter makes the heartbeat earlier, never later: sessions spread out, and no lease is renewed
// late.
func TestJitterMakesTheHeartbeatEarlier(t *testing.T) {
	s := start(t, Config{})
	s.latest = true
	s.renew(s.call())
	s.seen = Effects{}
	if s.pass(ttl/3 - ttl/24 - 1); s.seen.Heartbeat {
		t.Error("the heartbeat comes earlier than its jitter allows")
	}
	if s.pass(2); !s.seen.Heartbeat {
		t.Error("the heartbeat is not earlier by its jitter")
	}
}

// Hedges come ever more slowly, and at most MaxCalls calls are in flight.
func TestHedgesSlowDown(t *testing.T) {
	s := start(t, Config{})
	s.heart.rtt = 50 * time.Millisecond
	var at []time.Duration
	s.beat = func(*Call) { at = append(at, s.now) }
	s.call()
	sent := s.now
	s.pass(20 * ttl)
	if len(at) != MaxCalls-1 || s.nextCall() != nil {
		t.Fatalf("%d hedges, or one more is allowed; want %d", len(at), MaxCalls-1)
	}
	if at[0] != sent+100*time.Millisecond || at[1] != at[0]+400*time.Millisecond || at[2] != at[1]+ttl/5 {
		t.Errorf("the hedges are sent at %v, the first call at %v", at, sent)
	}
	for i := 3; i < len(at); i++ {
		if at[i]-at[i-1] != ttl/5 {
			t.Errorf("a hedge comes %v after the one before, want %v", at[i]-at[i-1], ttl/5)
		}
	}
}
