package core

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The trust of a permit ends while its extension is in flight, and Redis extends the lease. The
// permit stays lost, because the shell has told its owner. The session does not release the lease,
// because its connection is still closing.
func TestExtensionThatCrossesALossDoesNotRevive(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.acquire()
	r := s.extend(p)
	b := s.batch()
	s.pass(ttl - margin)
	if p.State() != Lost {
		t.Fatal("bug in the test: the trust is not over")
	}
	s.answer(b, all)
	if !r.settled || !errors.Is(r.err, ErrLost) || p.State() != Lost || s.holds(p) {
		t.Errorf("the extension of a lost permit ends with %v, and the permit is in state %d",
			r.err, p.State())
	}
	s.Close(s.now)
	if left := s.Leave(s.now); len(left) != 0 {
		t.Errorf("Leave returns %q, although the connection under that lease is still closing",
			left)
	}
}

// The same, and the caller has given up. It withdraws the request, not the permit.
func TestWithdrawnExtensionDoesNotReleaseALostPermit(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.acquire()
	r := s.extend(p)
	s.lose(s.now, p)
	b := s.batch()
	if err := s.GiveUp(s.now, r, time.Second); !errors.Is(err, ErrUnavailable) {
		t.Errorf("the caller is told %v, want that Redis has not answered", err)
	}
	s.answer(b, message.Exchanged{Granted: []string{p.ID}})
	s.Close(s.now)
	if left := s.Leave(s.now); len(left) != 0 {
		t.Errorf("Leave returns %q, although the connection under that lease is still closing",
			left)
	}
}

// Redis extends a lease by a message that says nothing of that: a repeat of the request that was
// granted meanwhile, or its late push. The permit is lost before the session hears of that. The
// lease is not given away, for the connection under it is still being ended.
func TestARepeatedGrantDoesNotReleaseWhatWasLost(t *testing.T) {
	for name, late := range map[string]func(s *stage, granted time.Duration, b *Batch, p *Permit){
		"the reply to the repeat": func(s *stage, _ time.Duration, b *Batch, p *Permit) {
			s.answer(b, message.Exchanged{Granted: []string{p.ID}})
		},
		"the reply to the repeat, after the session has left": func(
			s *stage, _ time.Duration, b *Batch, p *Permit) {
			s.Leave(s.now)
			s.answer(b, message.Exchanged{Granted: []string{p.ID}})
		},
		"the push": func(s *stage, granted time.Duration, b *Batch, p *Permit) {
			s.BatchFailed(s.now, b, Failed, errSilent)
			s.grantPushed(granted, p.ID)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{Capacity: 2})
			p, r := s.wantsOne(message.Wait)
			s.answer(s.batch(), queued)
			granted := s.now
			s.pass(s.cfg.RetryInterval)
			b := s.batch()
			if s.grantPushed(granted, p.ID); !s.holds(p) || !r.settled {
				t.Fatal("bug in the test: not granted")
			}
			s.pass(p.TrustedUntil() - s.now)
			if p.State() != Lost {
				t.Fatal("bug in the test: the trust is not over")
			}
			late(s, granted+time.Second, b, p)
			s.Close(s.now)
			if left := append(s.Leave(s.now), s.Leftover()...); len(left) != 0 {
				t.Errorf("Redis is to remove %q: the connection under that lease is still being ended",
					left)
			}
		})
	}
}

// A permit that covers a backend is not among what a session that leaves gives out. An answer that
// comes afterwards, and names the permit, changes nothing in that.
func TestAGrantAfterTheEndDoesNotReleaseWhatCovers(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p, _ := s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	s.pass(s.cfg.RetryInterval)
	b := s.batch()
	s.grantPushed(s.now, p.ID)
	s.RecordBackend(p, "1 2 3")
	s.Close(s.now)
	s.Leave(s.now)
	s.answer(b, message.Exchanged{Granted: []string{p.ID}})
	if left := s.Leftover(); len(left) != 0 {
		t.Errorf("Redis is to remove %q, whose backend may live", left)
	}
}

// Once a lost permit is released, its UUID is nothing to the session. A message that strayed brings
// it back in Redis, and it is dropped like any other.
func TestAStrayGrantOfAReleasedPermitIsDropped(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.acquire()
	s.lose(s.now, p)
	s.release(p)
	s.answer(s.batch(), all)
	if s.grantPushed(s.now, p.ID); !slices.Contains(s.batch().dropped(), p.ID) {
		t.Error("Redis counts a permit that nobody gives back")
	}
}

// Many a lost permit is never released. The session does not keep their UUIDs for good.
func TestALossIsForgotten(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	s.beat = s.renew
	s.lose(s.now, s.acquire())
	if s.pass(2*ttl - 1); len(s.lost) != 1 {
		t.Error("forgotten while a message that extended the lease may be on its way")
	}
	if s.pass(ttl); len(s.lost) != 0 {
		t.Error("not forgotten")
	}
}

// Redis forgot the permit. The permit is lost even if another one is free: no new lease begins
// under its UUID.
func TestExtensionDoesNotAcquireAnew(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.acquire()
	r := s.extend(p)
	b := s.batch()
	if len(b.X.Requests) != 1 || b.X.Requests[0].Kind != message.Hold {
		t.Errorf("the batch asks for %+v, want an extension alone", b.X.Requests)
	}
	s.seen = Effects{}
	s.answer(b, message.Exchanged{Free: 1, Refused: []string{p.ID}})
	if !errors.Is(r.err, ErrLost) || p.State() != Lost {
		t.Errorf("the extension of a forgotten permit ends with %v, and the permit is in state %d",
			r.err, p.State())
	}
	if !slices.Contains(s.seen.Trust, p) {
		t.Error("the shell is not told of the loss")
	}
}

// The caller's patience ends while the grant is in flight. The core returns the permit.
func TestGrantThatCrossesTheEndOfPatienceGoesBack(t *testing.T) {
	for _, c := range []struct {
		name  string
		order func(s *stage, b *Batch, giveUp func())
	}{
		{"first the grant", func(s *stage, b *Batch, giveUp func()) {
			s.answer(b, all)
			giveUp()
		}},
		{"first the end", func(s *stage, b *Batch, giveUp func()) {
			giveUp()
			s.answer(b, all)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, Config{})
			p, r := s.wantsOne(message.Wait)
			c.order(s, s.batch(), func() {
				if s.GiveUp(s.now, r, time.Second) == nil {
					t.Error("a caller that gave up is told that it has the permit")
				}
				s.take()
			})
			if s.holds(p) {
				t.Error("the permit is held, although nobody waits for it")
			}
			if got := s.batch().dropped(); !slices.Contains(got, p.ID) {
				t.Errorf("the next batch drops %q, want the permit among them", got)
			}
		})
	}
}

// A withdrawal reaches Redis after its request: it is in a later batch, and batches do not overlap.
func TestWithdrawalFollowsItsRequest(t *testing.T) {
	s := start(t, Config{})
	p, r := s.wantsOne(message.Wait)
	first := s.batch()
	_ = s.GiveUp(s.now, r, time.Second)
	if s.take(); s.NextBatch(s.now) != nil {
		t.Fatal("the withdrawal can overtake its request")
	}
	s.answer(first, queued)
	if second := s.batch(); !slices.Equal(second.dropped(), []string{p.ID}) || len(second.asks()) != 0 {
		t.Errorf("sent %+v, want the withdrawal alone", second.X)
	}
}

// The core withdraws a request that was never sent without telling Redis.
func TestUnsentRequestIsWithdrawnHere(t *testing.T) {
	s := start(t, Config{})
	_, r := s.wantsOne(message.Wait)
	_ = s.GiveUp(s.now, r, time.Second)
	if s.take(); s.NextBatch(s.now) != nil {
		t.Error("a batch is sent for a request of which Redis knows nothing")
	}
}

// A pool that hears of a loss before the grant would keep the permit for ever. Here both happen
// before the shell has told the pool anything.
func TestLossIsToldAfterTheGrant(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	p.ask(1)
	b := s.batch()
	permit := p.request.Permits[0]
	s.BatchAnswered(s.now, b, all, false)
	s.lose(s.now, permit)
	s.take()
	if i, j := slices.Index(p.told, "granted"), slices.Index(p.told, "lost"); i < 0 || j < i {
		t.Errorf("told %q, want the loss after the grant", p.told)
	}
}

// A request can be in the outbox again when the reply to its first batch settles it. Then it must
// not be sent: the permit may even be released by now.
func TestSettledRequestIsNotSentAgain(t *testing.T) {
	s := start(t, Config{})
	p, _ := s.wantsOne(message.Wait)
	first := s.batch()
	s.Resubscribed(s.now) // which repeats what waits
	s.answer(first, all)
	s.release(p)
	second := s.batch()
	if len(second.X.Release) != 1 || len(second.asks()) != 0 {
		t.Errorf("sent %+v, want the release alone", second.X)
	}
}

// A push says that a caller waits. The answer to an earlier batch must not overrule the push.
func TestStaleCalmDoesNotCancelAPush(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	answer := func(between func()) {
		s.Offer(s.now, &p.Pool, 1)
		b := s.batch()
		s.pass(time.Millisecond)
		between()
		s.answer(b, message.Exchanged{})
	}
	before := p.times("calm")
	answer(func() {
		s.Pushed(s.now, message.Push{Kind: message.PushWanted, Pool: p.name})
		s.take()
	})
	if p.times("wanted") != 1 || p.times("calm") != before {
		t.Errorf("told %q, want no \"calm\" by an answer older than the push", p.told)
	}
	s.pass(time.Millisecond)
	if answer(func() {}); p.times("calm") != before+1 {
		t.Errorf("told %q, want one more \"calm\"", p.told)
	}
}

// A waiter asks again within RetryInterval, never later, whatever the jitter: so a grant whose push
// was lost waits no longer.
func TestAskingAgainIsWithinRetryInterval(t *testing.T) {
	for _, latest := range []bool{false, true} {
		s := start(t, Config{RetryInterval: 400 * time.Millisecond})
		s.latest = latest
		p, r := s.wantsOne(message.Wait)
		s.answer(s.batch(), queued)
		s.seen = Effects{}
		s.pass(400 * time.Millisecond)
		if !s.seen.Flush {
			t.Fatal("the waiter does not ask again")
		}
		b := s.batch()
		if !slices.Equal(b.X.Waits, []string{p.ID}) {
			t.Errorf("the batch asks for %q, want the same request again", b.X.Waits)
		}
		if s.answer(b, all); !s.holds(p) || !r.settled {
			t.Error("the waiter does not find the grant whose push was lost")
		}
	}
}

// Redis says when the next lease of the fleet expires. A waiter asks again then, if that is earlier
// than its next retry.
func TestAskingAgainWhenSomethingExpires(t *testing.T) {
	s := start(t, Config{})
	s.wantsOne(message.Wait)
	s.answer(s.batch(), message.Exchanged{Waiting: 1, Wake: redis(s.now + 7*time.Millisecond)})
	s.seen = Effects{}
	if s.pass(7 * time.Millisecond); s.seen.Flush {
		t.Error("the waiter asks before Redis's clock can show that time")
	}
	if s.pass(time.Millisecond); !s.seen.Flush {
		t.Error("the waiter does not ask again")
	}
}
