package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A repeated push of a grant does not answer the request that extends its permit. If it did, the
// extension would be sent one batch later, and a slow Redis could answer it too late.
func TestAnOldGrantExtendsNothing(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	granted := s.now
	s.pass(time.Second)
	r := s.extend(p)
	s.grantPushed(granted, p.ID)
	if r.settled {
		t.Error("an earlier grant settles the extension")
	}
	b := s.batch()
	if len(b.requests) != 1 {
		t.Errorf("%d requests in the next batch, want the extension", len(b.requests))
	}
	if s.answer(b, all); !r.settled || r.err != nil {
		t.Error("the extension is not settled by its own answer")
	}
}

// A session may hear of a grant so late that no renewal can be answered in time. Then it asks
// again, instead of holding the permit and losing it. But where every reply takes that long, it
// holds the permit.
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
		s := start(t, Config{}) // leases of 5 s, 4.5 of them trusted
		s.beat = s.renew
		s.pass(10 * time.Second)
		s.renew(s.call()) // ties the clocks at a whole millisecond
		s.heart.rtt = c.rtt
		p, r := s.wantsOne(message.Wait)
		s.batch()
		s.grantPushed(s.now+c.left-ttl+margin, p.ID)
		if held := s.permits[p.ID] != nil; held != c.held {
			t.Errorf("with %v of trust left and replies that take %v, held is %v",
				c.left, c.rtt, held)
		}
		if r.queued == c.held {
			t.Errorf("with %v of trust left and replies that take %v, asked for again is %v",
				c.left, c.rtt, r.queued)
		}
	}
}

// A grant that was in flight for long is held, and the next batch extends it: the heartbeat would
// have to make a connection first.
func TestAGrantWithLittleTrustIsExtendedAtOnce(t *testing.T) {
	s := start(t, Config{})
	p, _ := s.wantsOne(message.Wait)
	b := s.batch()
	s.pass(3 * time.Second) // which leaves 1.5 of 4.5 s
	s.answer(b, all)
	if !s.holds(p) {
		t.Fatal("the grant is not held")
	}
	next := s.batch()
	if len(next.requests) != 1 || !next.requests[0].Extends || next.requests[0].Permits[0] != p {
		t.Errorf("sent %+v, want the extension", next.X)
	}
	s.answer(next, all)
	if left := p.TrustedUntil() - s.now; left != ttl-margin {
		t.Errorf("trusted for %v after the extension, want 0.9 TTL", left)
	}
}

// The session extends a hasty grant itself, and a caller then extends the same permit. That the first
// of the two fails takes nothing from the caller's: it is settled by its own answer.
func TestAFailedExtensionDoesNotEndTheCallers(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(p *Permit) message.Exchanged
		err    error
		state  State
	}{
		"granted": {func(p *Permit) message.Exchanged {
			return message.Exchanged{Granted: []string{p.ID}}
		}, nil, Held},
		"refused": {func(p *Permit) message.Exchanged {
			return message.Exchanged{Refused: []string{p.ID}}
		}, ErrLost, Lost},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			p, _ := s.wantsOne(message.Wait)
			b := s.batch()
			s.pass(3 * time.Second)
			s.answer(b, all)
			b = s.batch()
			if !b.requests[0].Extends {
				t.Fatal("bug in the test: the session does not extend the grant")
			}
			r := s.extend(p)
			s.BatchFailed(s.now, b, Failed, errSilent)
			if r.settled {
				t.Fatal("the caller's is settled by what became of the other")
			}
			s.answer(s.batch(), c.answer(p))
			if !r.settled || !errors.Is(r.err, c.err) || p.State() != c.state {
				t.Errorf("settled %v, %v; state %d", r.settled, r.err, p.State())
			}
		})
	}
}

// Trust counts from before the request was sent, however late the reply is.
func TestTrustCountsFromBeforeTheRequest(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p, _ := s.wantsOne(message.Wait)
	b := s.batch()
	sent := s.now
	s.pass(time.Second)
	s.answer(b, all)
	if p.TrustedUntil() != sent+ttl-margin {
		t.Errorf("trusted until %v, want 0.9 TTL from the batch's sending at %v",
			p.TrustedUntil(), sent)
	}
	k := s.call()
	sent = s.now
	s.pass(time.Second)
	s.renew(k)
	if p.TrustedUntil() != sent+ttl-margin {
		t.Errorf("trusted until %v, want 0.9 TTL from the call's sending at %v",
			p.TrustedUntil(), sent)
	}
	q, _ := s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	granted := s.now
	s.pass(100 * time.Millisecond)
	s.grantPushed(granted, q.ID)
	if !s.holds(q) || q.TrustedUntil() > granted+ttl-margin {
		t.Errorf("trusted until %v, want at most 0.9 TTL from Redis's grant at %v",
			q.TrustedUntil(), granted)
	}
}

// A reply counts even if it comes with a moment of trust left: 2.7 s after its call, and 4.3 s
// after the grant.
func TestALateReplyCounts(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	s.pass(1600 * time.Millisecond)
	k := s.call()
	s.pass(2700 * time.Millisecond)
	if !s.holds(p) {
		t.Fatal("bug in the test: the trust is over before the reply")
	}
	s.renew(k)
	s.pass(1700 * time.Millisecond)
	if !s.holds(p) {
		t.Error("the permit is lost, although Redis answered in time")
	}
	if s.pass(100 * time.Millisecond); s.holds(p) || p.State() != Lost {
		t.Error("the permit is held for longer than the call proves")
	}
}

// Redis is away for longer than a lease. Leases are lost once they cannot be proven. Several calls
// are in flight, up to a bound. The session works again once Redis answers.
func TestLeasesAreLostWhenRedisIsSilent(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	var calls []*Call
	s.beat = func(k *Call) { calls = append(calls, k) }
	if s.pass(ttl - margin - 1); !s.holds(p) {
		t.Error("the permit is lost while it is trusted")
	}
	if s.pass(1); s.holds(p) || p.State() != Lost {
		t.Error("the permit is held without proof")
	}
	if s.Down() == nil || len(calls) < 3 {
		t.Errorf("Down is %v after %d calls, want an error, and at least 3 calls",
			s.Down(), len(calls))
	}
	s.pass(time.Minute)
	if len(s.heart.calls) > MaxCalls {
		t.Errorf("%d calls are in flight, the most is %d", len(s.heart.calls), MaxCalls)
	}
	for _, k := range calls {
		s.CallFailed(s.now, k, errSilent)
	}
	s.beat = s.renew
	s.pass(ttl)
	if s.Down() != nil {
		t.Errorf("Down is %v, although Redis answers", s.Down())
	}
	s.release(p)
	q, _ := s.wantsOne(message.Wait)
	if s.answer(s.batch(), all); !s.holds(q) {
		t.Error("a grant after the outage is not held")
	}
}

// Leases are renewed in time as long as replies take at most 40 % of a lease, whether from the
// start or suddenly.
func TestLateRepliesLoseNoLease(t *testing.T) {
	for _, sudden := range []bool{false, true} {
		s := start(t, Config{})
		type reply struct {
			k  *Call
			at time.Duration
		}
		var onTheWay []reply
		takes := 2 * time.Second
		if sudden {
			takes = 0
		}
		s.beat = func(k *Call) { onTheWay = append(onTheWay, reply{k, s.now + takes}) }
		p := s.acquire()
		for range 6000 { // a minute
			s.pass(10 * time.Millisecond)
			if s.now > 10*time.Second {
				takes = 2 * time.Second
			}
			for len(onTheWay) > 0 && onTheWay[0].at <= s.now {
				k := onTheWay[0].k
				onTheWay = onTheWay[1:]
				s.renew(k)
			}
			if !s.holds(p) {
				t.Fatalf("the permit is lost at %v, although Redis answered in time", s.now)
			}
		}
	}
}
