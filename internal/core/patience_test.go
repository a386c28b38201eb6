package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A caller that gives up is told why it got no permit: Redis does not answer, has not answered yet,
// has no memory, or has no free permit.
func TestTheReasonOfGivingUp(t *testing.T) {
	reset := errors.New("connection reset")
	for name, c := range map[string]struct {
		before func(s *stage, b *Batch, r *Request)
		want   []error
	}{
		"no answer yet": {func(*stage, *Batch, *Request) {}, []error{ErrUnavailable}},
		"Redis is away": {func(s *stage, b *Batch, _ *Request) {
			s.BatchFailed(s.now, b, Failed, reset)
		}, []error{ErrUnavailable, reset}},
		"no permit": {func(s *stage, b *Batch, _ *Request) { s.answer(b, queued) }, []error{ErrCapacity}},
		"no memory": {func(s *stage, b *Batch, r *Request) {
			s.answer(b, message.Exchanged{Full: true, NoMemory: r.ids})
		}, []error{ErrUnavailable, errNoMemory}},
		"memory again": {func(s *stage, b *Batch, r *Request) {
			s.answer(b, message.Exchanged{Full: true, NoMemory: r.ids})
			s.pass(time.Second)
			s.answer(s.batch(), queued)
		}, []error{ErrCapacity}},
		"refused": {func(s *stage, b *Batch, r *Request) {
			s.answer(b, message.Exchanged{Crowded: r.ids})
		}, []error{ErrCapacity}},
		"closed": {func(s *stage, _ *Batch, _ *Request) { s.Close(s.now) }, []error{ErrClosed}},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			_, r := s.wantsOne(message.Wait)
			c.before(s, s.batch(), r)
			s.take()
			err := s.GiveUp(s.now, r, time.Second)
			for _, want := range c.want {
				if !errors.Is(err, want) {
					t.Errorf("the caller is told %v, want %v", err, want)
				}
			}
			if settled, _ := r.Settled(); !settled || len(s.asked) != 0 {
				t.Error("the core still asks for the permit")
			}
		})
	}
}

// The end of patience crosses the answer to an extension. The permit stays held.
func TestAnExtensionThatCrossesTheEndOfPatience(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	r := s.extend(p)
	s.answer(s.batch(), all)
	if err := s.GiveUp(s.now, r, time.Second); err != nil || !s.holds(p) {
		t.Errorf("the caller is told %v, held is %v; want no error, and the permit held",
			err, s.holds(p))
	}
}

// A request that does not wait has patience for as long as its answer is of use. That is a lease,
// plus the time until the batch before it is answered.
func TestPatienceWithoutAQueue(t *testing.T) {
	s := start(t, Config{})
	for rtt, want := range map[time.Duration]time.Duration{0: ttl, time.Second: ttl + 2*time.Second, ttl: 2 * ttl} {
		if s.heart.rtt = rtt; s.TryPatience() != want {
			t.Errorf("with replies that take %v the patience is %v, want %v",
				rtt, s.TryPatience(), want)
		}
	}
}

// Several permits are granted together, or none is. Redis may refuse them together but count some
// of them, if a hand removed the others: so the core drops them all.
func TestPermitsTogether(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	r := s.request(message.Wait, s.NewPermit(), s.NewPermit())
	if s.answer(s.batch(), all); !s.holds(r.Permits[0]) || !s.holds(r.Permits[1]) {
		t.Error("the permits are not granted together")
	}
	refused := s.request(message.Try, s.NewPermit(), s.NewPermit())
	s.answer(s.batch(), message.Exchanged{Refused: refused.ids[:1]})
	if !errors.Is(refused.err, ErrCapacity) || s.holds(refused.Permits[0]) {
		t.Errorf("the refused request ends with %v, or a permit of it is held", refused.err)
	}
	got := named(s.batch().X.Drop)
	if len(got) != 2 || got[0] != refused.ids[0] || got[1] != refused.ids[1] {
		t.Errorf("the batch drops %q, want %q", got, refused.ids)
	}
}

// A caller can wait for a call, as a record of a backend does. It goes on once that call or a later
// one is answered. It also goes on once the call has failed and no later one is in flight.
func TestTheStateOfACall(t *testing.T) {
	s := start(t, Config{})
	state := func(k *Call, wantAnswered, wantFailed bool) {
		t.Helper()
		if answered, failed, _ := s.CallState(k.Number()); answered != wantAnswered || failed != wantFailed {
			t.Errorf("call %d: answered %v, failed %v; want %v and %v",
				k.Number(), answered, failed, wantAnswered, wantFailed)
		}
	}
	first, second, third := s.call(), s.call(), s.call()
	if s.LastCall() != third.Number() {
		t.Errorf("the last call is %d, want %d", s.LastCall(), third.Number())
	}
	reset := errors.New("connection reset")
	s.CallFailed(s.now, second, reset)
	state(first, false, false)
	state(second, false, false) // the third may be answered
	s.CallFailed(s.now, third, reset)
	state(third, false, true)
	state(second, false, true)
	state(first, false, false)
	s.renew(first)
	state(first, true, true) // and no call is in flight any more
	if _, _, err := s.CallState(second.Number()); err != reset {
		t.Errorf("the second call failed with %v, want %v", err, reset)
	}
	fourth := s.call()
	state(second, false, false)
	s.renew(fourth)
	state(second, true, true)
}

// A permit whose trust is over counts as lost, even if no Tick has noticed yet.
func TestAPermitIsLostWhenItsTimeIsOver(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	s.now = p.TrustedUntil() - 1
	if s.LoseIfOver(s.now, p); p.State() != Held {
		t.Error("the permit is lost while it is trusted")
	}
	s.now++
	if s.LoseIfOver(s.now, p); p.State() != Lost {
		t.Error("the permit is held, although its trust is over")
	}
}
