package core

import (
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// unheard has a call answered by a server that has no subscription of the session.
func (s *stage) unheard() {
	s.tb.Helper()
	k := s.call()
	got := message.Renewed{Now: redis(s.now), Epoch: s.state, Capacity: int64(s.cfg.Capacity)}
	s.CallAnswered(s.now, k, got)
	s.take()
}

// One server answers the heartbeats, and another has the subscription. The session replaces the
// subscription. If the new one is unheard as well, the pauses double, up to a bound.
func TestAnUnheardSubscriptionIsReplaced(t *testing.T) {
	s := start(t, Config{})
	s.SetConfirmed(s.now, true)
	s.pass(1)
	for pause := ttl / 4; ; pause = min(2*pause, MaxRefusedPause) {
		s.seen = Effects{}
		if s.unheard(); !s.seen.Replace || s.Confirmed() {
			t.Fatalf("the subscription is not replaced after a pause of %v", pause)
		}
		if !s.TakeUnheard() || s.TakeUnheard() {
			t.Error("TakeUnheard is not true exactly once")
		}
		s.SetConfirmed(s.now, true)
		s.pass(pause - 1)
		s.seen = Effects{}
		if s.unheard(); s.seen.Replace {
			t.Fatalf("the subscription is replaced again before a pause of %v", pause)
		}
		s.pass(1)
		if pause == MaxRefusedPause {
			break
		}
	}
}

// The answer to a call counts only for a subscription that Redis confirmed before the call was
// sent. It says nothing about one that was confirmed later or not at all, or if the server does not
// count.
func TestACallSaysNothingOfALaterSubscription(t *testing.T) {
	const yes, no, unsaid = 1, -1, 0
	for name, c := range map[string]struct {
		before, since int   // what Redis confirmed before the call was sent, and afterwards
		counts        int64 // subscriptions, by the answer
		replaced      bool
	}{
		"confirmed since":   {before: unsaid, since: yes, counts: 0},
		"not confirmed":     {before: unsaid, since: unsaid, counts: 0},
		"broken since":      {before: yes, since: no, counts: 0},
		"the count unknown": {before: yes, since: unsaid, counts: -1},
		"heard":             {before: yes, since: unsaid, counts: 1},
		"unheard":           {before: yes, since: unsaid, counts: 0, replaced: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			if c.before != unsaid {
				s.SetConfirmed(s.now, c.before == yes)
			}
			s.pass(1)
			k := s.call()
			s.pass(1)
			if c.since != unsaid {
				s.SetConfirmed(s.now, c.since == yes)
			}
			got := message.Renewed{
				Now: redis(s.now), Epoch: "e", Capacity: 1, Subscribers: c.counts}
			s.CallAnswered(s.now, k, got)
			if s.take(); s.seen.Replace != c.replaced {
				t.Errorf("replaced is %v, want %v", s.seen.Replace, c.replaced)
			}
		})
	}
}

// Pushes are lost while there is no subscription. So the session repeats its waiting requests, and
// a call learns of recalls.
func TestASubscriptionThatIsBackAsksAgain(t *testing.T) {
	s := start(t, Config{})
	p, _ := s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	s.seen = Effects{}
	s.Resubscribed(s.now)
	if s.take(); !s.seen.Heartbeat {
		t.Error("the core makes no call")
	}
	if b := s.batch(); !slices.Equal(b.X.Waits, []string{p.ID}) {
		t.Errorf("sent %+v, want the waiting request", b.X)
	}
}

// Some pushes only make the session ask Redis: for its grants, or whether the state is lost.
func TestPushesThatAsk(t *testing.T) {
	s := start(t, Config{})
	p, _ := s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	s.seen = Effects{}
	s.Pushed(s.now, message.Push{Kind: message.PushHeartbeat})
	if s.take(); s.seen.Flush || s.seen.Heartbeat {
		t.Errorf("a push that only proves the subscription has effects: %+v", s.seen)
	}
	s.Pushed(s.now, message.Push{Kind: message.PushLost})
	if s.take(); !s.seen.Heartbeat {
		t.Error("no call finds out whether the state is lost")
	}
	s.Pushed(s.now, message.Push{Kind: message.PushRetry})
	if b := s.batch(); !slices.Equal(b.X.Waits, []string{p.ID}) {
		t.Errorf("sent %+v, want the waiting request", b.X)
	}
}

// With replicas, a session relies on a grant only once they have acknowledged a call of its own. So
// a push of the grant makes the session ask.
func TestAReplicatedGrantIsAskedFor(t *testing.T) {
	s := start(t, Config{Replicated: true})
	p, r := s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	s.pass(time.Millisecond)
	s.grantPushed(s.now, p.ID)
	if s.holds(p) || r.settled {
		t.Error("the session relies on a push")
	}
	if s.answer(s.batch(), all); !s.holds(p) {
		t.Error("the permit is not held after a batch was acknowledged")
	}
}
