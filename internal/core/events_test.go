package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// kinds are the kinds of events, in their order.
func kinds(events []Event) (kinds []EventKind) {
	for _, e := range events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// inOrder reports whether those kinds are among the events, in that order.
func inOrder(events []Event, want ...EventKind) bool {
	at := 0
	for _, kind := range kinds(events) {
		if at < len(want) && kind == want[at] {
			at++
		}
	}
	return at == len(want)
}

// A pool that hears of a recall before the grant may take it for the recall of a permit that it
// gave back. So events come in the order in which the core saw their causes, even if the shell has
// taken no effects in between.
func TestAGrantIsToldBeforeItsRecall(t *testing.T) {
	for name, grant := range map[string]func(s *stage, b *Batch, id string){
		"by a reply": func(s *stage, b *Batch, id string) { s.BatchAnswered(s.now, b, all, false) },
		"by a push": func(s *stage, b *Batch, id string) {
			s.Pushed(s.now, message.Push{
				Kind: message.PushGrant, Epoch: "e", Now: redis(s.now), IDs: []string{id}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			p := s.pool()
			p.ask(1)
			b := s.batch()
			grant(s, b, p.request.ids[0])
			s.Pushed(s.now, message.Push{Kind: message.PushRecall, Epoch: "e", Pool: p.name,
				Tally: message.Tally{Recalled: 1}, Millis: 30})
			events := s.Take().Events
			if !inOrder(events, Granted, Told) {
				t.Errorf("told %v, want the grant, then the recall", kinds(events))
			}
			for _, e := range events {
				s.deliver(e)
			}
			if len(p.permits) != 1 || p.owed != 1 || p.after != 30*time.Millisecond {
				t.Errorf("the pool has %d permits, and owes %d after %v; want 1 and 1 after 30ms",
					len(p.permits), p.owed, p.after)
			}
		})
	}
}

// A pool is told of all grants of one reply at once, and of its own grants only.
func TestAPoolIsToldItsGrantsTogether(t *testing.T) {
	s := start(t, Config{Capacity: 5})
	a, b := s.pool(), s.pool()
	a.ask(3)
	b.ask(2)
	s.answer(s.batch(), all)
	if a.times("granted") != 1 || len(a.permits) != 3 || b.times("granted") != 1 || len(b.permits) != 2 {
		t.Errorf("told %q with %d permits, and %q with %d", a.told, len(a.permits), b.told, len(b.permits))
	}
	for _, p := range []*pool{a, b} {
		for _, permit := range p.permits {
			if permit.Pool != &p.Pool {
				t.Errorf("a pool is told of the grant of %s, which is another pool's", permit.ID)
			}
		}
	}
}

// Redis grants a part of a pool's request. The core does not ask for the rest: the pool asks again
// itself.
func TestAPoolTakesAPart(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.ask(3)
	r := p.request
	s.answer(s.batch(), message.Exchanged{Granted: r.ids[:2]})
	if len(p.permits) != 2 || p.held != 2 || p.request != nil || !r.settled || len(s.asked) != 0 {
		t.Errorf("the pool has %d permits and holds %d, and the core asks for %d UUIDs; want 2, "+
			"2 and 0", len(p.permits), p.held, len(s.asked))
	}
	if r.Permits[2].State() != Fresh {
		t.Error("the permit that was not granted is not Fresh")
	}
}

// A pool hears of a loss after the grant. Here one reply tells both: it grants one permit, and
// refuses the extension of another.
func TestALossFollowsItsGrant(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p := s.pool()
	p.gets(1)
	old := p.permits[0]
	p.ask(1)
	s.extend(old)
	b := s.batch()
	got := message.Exchanged{Now: redis(s.now), Granted: p.request.ids, Refused: []string{old.ID}}
	s.BatchAnswered(s.now, b, got, false)
	s.lose(s.now, b.requests[0].Permits[0])
	if events := s.Take().Events; !inOrder(events, Granted, LeaseLost, LeaseLost) {
		t.Errorf("told %v, want the grant, then the losses", kinds(events))
	}
}

// Redis goes away and comes back. Each pool is told of each change once, and of the second one
// before the grant that follows it.
func TestPoolsHearThatRedisIsBack(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	p.ask(1)
	s.BatchFailed(s.now, s.batch(), Failed, errors.New("connection reset"))
	if s.take(); p.times("changed") != 1 || s.Err() == nil || !errors.Is(s.Err(), ErrUnavailable) {
		t.Errorf("after the first failure: told %q, error %v", p.told, s.Err())
	}
	s.pass(MaxRetryPause)
	s.BatchFailed(s.now, s.batch(), Failed, errors.New("connection reset"))
	if s.take(); p.times("changed") != 1 {
		t.Errorf("after the second failure: told %q, want no second \"changed\"", p.told)
	}
	s.seen = Effects{}
	s.pass(MaxRetryPause)
	s.answer(s.batch(), all)
	if p.times("changed") != 2 || s.Err() != nil || !inOrder(s.seen.Events, Changed, Granted) {
		t.Errorf("Redis is back: told %q, error %v", p.told, s.Err())
	}
}

// Redis runs out of memory: it answers, but grants nothing new. Of two replies about its memory,
// the one that Redis gave later counts.
func TestPoolsHearThatRedisIsFull(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	s.Stay(&p.Pool, true)
	_, try := s.wantsOne(message.Try)
	_, wait := s.wantsOne(message.Wait)
	none := []string{try.ids[0], wait.ids[0]}
	s.answer(s.batch(), message.Exchanged{Full: true, Now: redis(s.now) + 2, NoMemory: none})
	if !errors.Is(s.Err(), ErrUnavailable) || p.times("changed") != 1 || s.Down() != nil {
		t.Errorf("without memory: error %v, told %q, down %v", s.Err(), p.told, s.Down())
	}
	if !errors.Is(try.err, ErrUnavailable) || wait.settled {
		t.Errorf("the request that does not wait ends with %v; the one that waits is settled: %v",
			try.err, wait.settled)
	}
	if err := s.GiveUp(s.now, wait, time.Second); !errors.Is(err, ErrUnavailable) {
		t.Errorf("its patience ends with %v, want ErrUnavailable", err)
	}
	s.replied(s.call(), message.Renewed{Now: redis(s.now) - 1})
	if p.times("changed") != 1 {
		t.Error("a reply that Redis gave earlier overrules a later one")
	}
	s.replied(s.call(), message.Renewed{Now: redis(s.now) + 3})
	if s.Err() != nil || p.times("changed") != 2 {
		t.Errorf("memory again: error %v, told %q", s.Err(), p.told)
	}
}
