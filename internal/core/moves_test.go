package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A pool was granted a permit from the queue, and has connected under it. The next turn of rotation may wait
// for that, so the session says it at once.
func TestTheEndOfAMoveIsSaidAtOnce(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	p.ask(1)
	s.answer(s.batch(), queued)
	s.pass(time.Millisecond)
	s.grantPushed(s.now, p.request.ids[0])
	s.seen = Effects{}
	s.Moved(s.now, &p.Pool, 3*time.Millisecond)
	if s.take(); !s.seen.Flush {
		t.Fatal("not said at once")
	}
	b := s.batch()
	if b.X.MoveMicros != 3000 || len(b.requests)+len(b.drops) != 0 {
		t.Errorf("sent %+v, want the cost of the move", b.X)
	}
	s.answer(b, all)
	if s.NextBatch(s.now) != nil || s.call().X.MoveMicros != 0 {
		t.Error("said twice")
	}
}

// The cost of a connect under a permit that was free goes with what is sent next.
func TestACostAloneIsNotSent(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.gets(1)
	s.Moved(s.now, &p.Pool, 3*time.Millisecond)
	if s.take(); s.NextBatch(s.now) != nil {
		t.Error("a batch for nothing but the cost")
	}
	s.wantsOne(message.Wait)
	if b := s.batch(); b.X.MoveMicros != 3000 {
		t.Errorf("the next batch says %d us", b.X.MoveMicros)
	}
}

// Redis did not answer, so rotation may still wait for a move that has ended. The cost is said again with what
// is repeated, and not before: Redis may be away.
func TestACostThatWasNotAnsweredIsSaidAgain(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	p.ask(1)
	s.answer(s.batch(), queued)
	s.grantPushed(s.now, p.request.ids[0])
	s.Moved(s.now, &p.Pool, 3*time.Millisecond)
	s.BatchFailed(s.now, s.batch(), Failed, errors.New("connection reset"))
	if s.take(); s.NextBatch(s.now) != nil {
		t.Error("said again at once")
	}
	if s.pass(MaxRetryPause); s.batch().X.MoveMicros != 3000 {
		t.Error("not said again")
	}
	s.CallFailed(s.now, s.call(), errors.New("connection reset"))
	if s.moveCost != 0 {
		t.Error("a call that had no cost to say has returned one")
	}
}

// An offer is a level: the latest counts, and one pool has one offer. The answer is what Redis needs of it.
func TestAnOfferIsALevel(t *testing.T) {
	s := start(t, Config{Capacity: 9})
	a, b := s.pool(), s.pool()
	a.gets(3)
	s.Offer(s.now, &a.Pool, 3)
	s.Offer(s.now, &b.Pool, 1)
	s.Offer(s.now, &a.Pool, 2)
	first := s.batch()
	if first.X.Offered != 2 || first.X.Offerer != a.name {
		t.Errorf("%s offers %d, want 2 of the first pool", first.X.Offerer, first.X.Offered)
	}
	s.tallies[a.name] = message.Tally{Recalled: 1}
	s.answer(first, message.Exchanged{Waiting: 1, Promised: s.tallies[a.name]})
	if a.times("promised") != 1 || a.owed != 1 || a.times("wanted") != 1 || b.times("promised") != 0 {
		t.Errorf("told %q and %q", a.told, b.told)
	}
	if second := s.batch(); second.X.Offered != 1 || second.X.Offerer != b.name {
		t.Errorf("%s offers %d, want 1 of the second pool", second.X.Offerer, second.X.Offered)
	}
}

// A pool is full once Redis has answered that no permit is free, while it waits.
func TestAPoolIsFullByAnAnswer(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.ask(1)
	b := s.batch()
	if p.Full() {
		t.Error("full before an answer")
	}
	s.answer(b, message.Exchanged{Waiting: 1, Free: 1}) // held back for another
	if p.Full() {
		t.Error("full although a permit is free")
	}
	s.Resubscribed(s.now)
	if s.answer(s.batch(), queued); !p.Full() {
		t.Error("not full although none is free")
	}
	if s.grantPushed(s.now, p.request.ids[0]); p.Full() {
		t.Error("full although it waits for nothing")
	}
}
