package core

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// hangs is a session whose batch, with one request, gets no reply on its first connection. A call
// that was made after the batch is answered on another one. So the core has the batch sent once
// more.
func hangs(t *testing.T, kind message.Kind) (s *stage, p *Permit, r *Request, b *Batch) {
	t.Helper()
	s = start(t, Config{Capacity: 2})
	p, r = s.wantsOne(kind)
	b = s.batch()
	s.beat = s.renew
	s.pass(s.deadAfter() + minHedge)
	if s.seen.Resend != b {
		t.Fatal("the batch is not sent once more")
	}
	s.seen = Effects{}
	return s, p, r, b
}

// Both copies are answered. The first reply counts, whichever copy it answers. The second changes
// nothing, whatever it says, and does not end the batch that is in flight by then.
func TestOfTwoRepliesTheFirstCounts(t *testing.T) {
	for name, again := range map[string]bool{"of the first copy": false, "of the second": true} {
		t.Run(name, func(t *testing.T) {
			s, p, r, b := hangs(t, message.Wait)
			s.Again(s.now, b)
			s.BatchAnswered(s.now, b, all, again)
			if s.take(); !s.holds(p) || !r.settled || r.err != nil {
				t.Fatalf("the first reply does not count: held %v, %v", s.holds(p), r.err)
			}
			trusted := p.TrustedUntil()
			s.seen = Effects{}
			s.pass(time.Millisecond)
			s.BatchAnswered(s.now, b, message.Exchanged{Now: redis(s.now), Refused: []string{p.ID}}, !again)
			if s.take(); !s.holds(p) || p.TrustedUntil() != trusted || len(s.seen.Trust)+len(s.seen.Settled) != 0 {
				t.Errorf("the second reply counts as well: held %v", s.holds(p))
			}
			s.release(p)
			next := s.batch()
			s.BatchAnswered(s.now, b, all, again)
			s.BatchFailed(s.now, b, Gone, message.ErrGone)
			s.BatchFailed(s.now, b, Failed, errors.New("connection reset"))
			if s.take(); s.inFlight != next || s.holds(p) || s.Down() != nil {
				t.Error("a late outcome of an answered batch ends the batch after it")
			}
		})
	}
}

// The reply to one copy says that a request is not granted, and has no place in the queue. Redis may
// have executed the other copy since, when there was room. So the request is withdrawn, whichever
// copy was answered. A lease that was to be extended is not: what is lost is left to expire.
func TestARefusalOfOneCopyWithdrawsTheOther(t *testing.T) {
	for name, refuse := range map[string]func(id string) message.Exchanged{
		"refused":   func(id string) message.Exchanged { return message.Exchanged{Refused: []string{id}} },
		"crowded":   func(id string) message.Exchanged { return message.Exchanged{Crowded: []string{id}} },
		"no memory": func(id string) message.Exchanged { return message.Exchanged{Full: true, NoMemory: []string{id}} },
	} {
		for _, again := range []bool{false, true} {
			s, p, r, b := hangs(t, message.Try)
			s.Again(s.now, b)
			got := refuse(p.ID)
			got.Now = redis(s.now)
			s.BatchAnswered(s.now, b, got, again)
			s.take()
			if !r.settled || r.err == nil {
				t.Fatalf("bug in the test: %s: %v", name, r.err)
			}
			want := []string{message.Permits(ttl.Milliseconds(), p.ID)}
			if next := s.NextBatch(s.now); next == nil || !slices.Equal(next.X.Drop, want) {
				t.Errorf("%s, the second copy answered %v: the session does not withdraw it", name, again)
			}
		}
	}
	s := start(t, Config{})
	p, _ := s.wantsOne(message.Wait)
	s.answer(s.batch(), all)
	s.Submit(s.now, &Request{Kind: message.Hold, Permits: []*Permit{p}, Extends: true})
	b := s.batch()
	s.Again(s.now, b)
	s.answer(b, message.Exchanged{Refused: []string{p.ID}})
	if next := s.NextBatch(s.now); p.State() != Lost || next != nil {
		t.Errorf("a lost lease is %v, and the session sends %+v", p.State(), next)
	}
}

// The session's other requests wait in the queue. Either copy may have been granted some of them, and
// only its own reply told of that. So whichever reply counts, the session soon asks for them again,
// and no more often than a call is hedged.
func TestWaitersAskAgainAfterACopy(t *testing.T) {
	for name, again := range map[string]bool{"of the first copy": false, "of the second": true} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{Capacity: 2, RetryInterval: 4 * time.Second})
			p, r := s.wantsOne(message.Wait)
			s.answer(s.batch(), queued)
			s.wantsOne(message.Try)
			b := s.batch()
			s.beat = s.renew
			s.pass(s.deadAfter() + minHedge)
			if s.seen.Resend != b {
				t.Fatal("the batch is not sent once more")
			}
			s.Again(s.now, b)
			s.BatchAnswered(s.now, b, all, again)
			s.take()
			s.seen = Effects{}
			if s.pass(minHedge - 1); s.seen.Flush {
				t.Error("asked again without a pause")
			}
			if s.pass(minHedge / 4); !s.seen.Flush {
				t.Fatal("not asked again soon")
			}
			next := s.batch()
			if !slices.Equal(next.asks(), []string{p.ID}) {
				t.Errorf("asked for %q, want what waits", next.asks())
			}
			if s.answer(next, all); !r.settled || !s.holds(p) {
				t.Error("not told of the grant")
			}
		})
	}
}

// While a copy is in flight, the next batch waits for it as well: a withdrawal must not overtake
// its request.
func TestNoBatchBesideACopy(t *testing.T) {
	s, _, r, b := hangs(t, message.Wait)
	s.Again(s.now, b)
	_ = s.GiveUp(s.now, r, time.Second)
	if s.take(); s.NextBatch(s.now) != nil {
		t.Error("the withdrawal can overtake its request")
	}
}

// A copy repeats its batch, but tells the present time and makes no offer: the lost reply may have
// promised permits that another pool has been granted since. A call asks for the answer to the
// offer.
func TestACopyRepeatsItsBatch(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.gets(1)
	s.Offer(s.now, &p.Pool, 1)
	q, _ := s.wantsOne(message.Wait)
	b := s.batch()
	s.pass(time.Second)
	again := s.Again(s.now, b)
	if again.Offered != 0 || b.X.Offered != 1 || again.Expected != redis(s.now) {
		t.Errorf("the copy offers %d permits at %d, want none, at the present time",
			again.Offered, again.Expected)
	}
	if !slices.Equal(again.Waits, []string{q.ID}) || again.Epoch != b.X.Epoch || again.Session != b.X.Session ||
		again.TTLMillis != b.X.TTLMillis {
		t.Errorf("the copy is %+v, want the batch %+v", again, b.X)
	}
	s.seen = Effects{}
	s.BatchAnswered(s.now, b, all, true)
	if s.take(); !s.seen.Heartbeat {
		t.Error("no call asks for the answer to the offer")
	}
}

// While Redis answers nothing at all, its reply to the batch may still come.
func TestASilentRedisGetsNoCopy(t *testing.T) {
	s := start(t, Config{})
	s.wantsOne(message.Wait)
	s.batch()
	calls := 0
	s.beat = func(*Call) { calls++ }
	if s.pass(s.deadAfter()); calls != 1 {
		t.Errorf("%d calls ask whether Redis answers, want 1", calls)
	}
	if s.pass(ttl); s.seen.Resend != nil {
		t.Error("the batch is sent once more, although nothing shows that its connection is dead")
	}
}

// A call that was sent before the batch proves nothing about the time since.
func TestAnEarlierCallProvesNothing(t *testing.T) {
	s := start(t, Config{})
	k := s.call()
	s.pass(time.Millisecond)
	s.wantsOne(message.Wait)
	s.batch()
	s.renew(k)
	if s.pass(2 * s.deadAfter()); s.seen.Resend != nil {
		t.Error("the batch is sent once more, because of an earlier call")
	}
}

// A copy hangs as well. Only a call that was sent after the copy can prove that, and there are at
// most MaxResends copies.
func TestEachCopyNeedsItsProof(t *testing.T) {
	s, _, _, b := hangs(t, message.Wait)
	for copies := 1; copies < MaxResends; copies++ {
		s.Again(s.now, b)
		var k *Call
		s.beat = func(call *Call) { k = call }
		if s.pass(s.deadAfter() + minHedge); s.seen.Resend != nil || k == nil {
			t.Fatalf("the batch is sent once more by the proof for the copy before; a call "+
				"asks: %v", k != nil)
		}
		s.renew(k)
		s.beat = s.renew
		if s.pass(minHedge); s.seen.Resend != b {
			t.Fatalf("%d copies hang, and no other is sent", copies)
		}
		s.seen = Effects{}
	}
	s.Again(s.now, b)
	if s.pass(3 * s.deadAfter()); s.seen.Resend != nil {
		t.Errorf("more than %d copies are sent", MaxResends)
	}
}

// A batch has failed once all of its copies have. Until then one of them may be answered.
func TestABatchFailsWithItsLastCopy(t *testing.T) {
	reset := errors.New("connection reset")
	s, p, r, b := hangs(t, message.Try)
	s.Again(s.now, b)
	s.BatchFailed(s.now, b, Failed, reset)
	if s.take(); r.settled || s.Down() != nil {
		t.Fatalf("the batch fails with its first copy: %v", r.err)
	}
	s.BatchFailed(s.now, b, Failed, reset)
	if s.take(); !errors.Is(r.err, ErrUnavailable) || !errors.Is(r.err, reset) || s.Down() == nil {
		t.Errorf("the batch does not fail with its last copy: %v", r.err)
	}
	if got := s.batch().X.Drop; !slices.Equal(named(got), []string{p.ID}) {
		t.Errorf("the batch drops %q, want the permit that may have been granted", got)
	}

	s, p, r, b = hangs(t, message.Try)
	s.BatchFailed(s.now, b, Failed, reset)
	s.BatchAnswered(s.now, b, all, true)
	if s.take(); !s.holds(p) || r.err != nil {
		t.Errorf("the answered copy does not count: %v", r.err)
	}
}

// The wait for a dead connection says nothing about how long replies take. If it counted, the next
// dead connection would be found three times later.
func TestADeadConnectionDoesNotCountAsSlow(t *testing.T) {
	s, p, _, b := hangs(t, message.Wait)
	before, rtt := s.deadAfter(), s.RoundTrip()
	s.Again(s.now, b)
	s.pass(time.Millisecond)
	s.BatchAnswered(s.now, b, all, true)
	if s.take(); s.RoundTrip() > max(rtt, time.Millisecond) || s.deadAfter() != before {
		t.Errorf("a reply counts as taking %v, and a connection as dead after %v; want neither "+
			"to grow", s.RoundTrip(), s.deadAfter())
	}
	if p.TrustedUntil() != b.sent+ttl-margin {
		t.Errorf("trusted until %v, the first copy was sent at %v and may have been executed then",
			p.TrustedUntil(), b.sent)
	}
}

// The reply to the first copy comes from a slow Redis, and its whole time counts.
func TestASlowReplyCountsAsSlow(t *testing.T) {
	s, _, _, b := hangs(t, message.Wait)
	s.Again(s.now, b)
	s.pass(time.Millisecond)
	s.answer(b, all)
	if s.RoundTrip() != s.now-b.sent {
		t.Errorf("a reply counts as taking %v, want %v", s.RoundTrip(), s.now-b.sent)
	}
}
