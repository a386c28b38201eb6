package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// WakeAt is no later than any timer of the core. A Tick at that timer does its work, and no Tick
// does it earlier. pass checks besides, in all tests, that a Tick that is early does nothing.
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
				s.tb.Error("there is no number, and no call that could have others leave")
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
				t.Errorf("WakeAt is %v, something is due at %v", s.WakeAt(), s.now+in)
			}
			if s.pass(in - 1); fired() {
				t.Error("done before it is due")
			}
			if s.pass(1); !fired() {
				t.Errorf("not done when it is due, in %v", in)
			}
		})
	}
}

// A permit that is renewed is not lost at its first end of trust. The timer finds a later one.
func TestTrustThatIsExtendedMovesTheTimer(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.acquire()
	s.pass(time.Second)
	q := s.acquire()
	s.renew(s.call()) // both
	s.release(q)
	s.pass(p.TrustedUntil() - s.now - 1)
	if p.State() != Held {
		t.Fatal("lost while it is trusted")
	}
	if s.pass(1); p.State() != Lost || q.State() != Released {
		t.Errorf("states %d and %d", p.State(), q.State())
	}
}

// A session of which nothing is known yet has no heartbeat, nor has one that has left anything to
// do.
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
		t.Errorf("a session that has left does %+v", s.seen)
	}
}

// With jitter the heartbeat comes earlier, never later: so sessions spread, and no lease is renewed
// late.
func TestJitterMakesTheHeartbeatEarlier(t *testing.T) {
	s := start(t, Config{})
	s.latest = true
	s.renew(s.call())
	s.seen = Effects{}
	if s.pass(ttl/3 - ttl/24 - 1); s.seen.Heartbeat {
		t.Error("earlier than by its jitter")
	}
	if s.pass(2); !s.seen.Heartbeat {
		t.Error("not earlier by its jitter")
	}
}

// Hedges come ever more slowly, and no more than MaxCalls are on their way.
func TestHedgesSlowDown(t *testing.T) {
	s := start(t, Config{})
	s.heart.rtt = 50 * time.Millisecond
	var at []time.Duration
	s.beat = func(*Call) { at = append(at, s.now) }
	s.call()
	sent := s.now
	s.pass(20 * ttl)
	if len(at) != MaxCalls-1 || s.nextCall() != nil {
		t.Fatalf("%d hedges, and perhaps another call; want %d", len(at), MaxCalls-1)
	}
	if at[0] != sent+100*time.Millisecond || at[1] != at[0]+400*time.Millisecond || at[2] != at[1]+ttl/5 {
		t.Errorf("hedges at %v, the first call was sent at %v", at, sent)
	}
	for i := 3; i < len(at); i++ {
		if at[i]-at[i-1] != ttl/5 {
			t.Errorf("a hedge %v after the one before, want %v", at[i]-at[i-1], ttl/5)
		}
	}
}
