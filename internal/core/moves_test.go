package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A pool was granted a permit from the queue, and has connected under it. The next turn of rotation
// may wait for the end of this move, so the session sends its cost at once.
func TestTheEndOfAMoveIsSentAtOnce(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	p.ask(1)
	s.answer(s.batch(), queued)
	s.pass(time.Millisecond)
	s.grantPushed(s.now, p.request.ids[0])
	s.seen = Effects{}
	s.Moved(s.now, &p.Pool, 3*time.Millisecond)
	if s.take(); !s.seen.Flush {
		t.Fatal("the cost of the move is not sent at once")
	}
	b := s.batch()
	if b.X.MoveMicros != 3000 || len(b.requests)+len(b.drops) != 0 {
		t.Errorf("sent %+v, want the cost of the move", b.X)
	}
	s.answer(b, all)
	if s.NextBatch(s.now) != nil || s.call().X.MoveMicros != 0 {
		t.Error("the cost is sent twice")
	}
}

// The cost of a connect under a free permit goes with the next batch.
func TestACostAloneIsNotSent(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.gets(1)
	s.Moved(s.now, &p.Pool, 3*time.Millisecond)
	if s.take(); s.NextBatch(s.now) != nil {
		t.Error("a batch begins for the cost alone")
	}
	s.wantsOne(message.Wait)
	if b := s.batch(); b.X.MoveMicros != 3000 {
		t.Errorf("the next batch reports %d us, want 3000", b.X.MoveMicros)
	}
}

// Redis did not answer, so rotation may still wait for a move that has ended. The session sends the
// cost again with the next repeat, and not before: Redis may be away.
func TestACostThatWasNotAnsweredIsSentAgain(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	p.ask(1)
	s.answer(s.batch(), queued)
	s.grantPushed(s.now, p.request.ids[0])
	s.Moved(s.now, &p.Pool, 3*time.Millisecond)
	s.BatchFailed(s.now, s.batch(), Failed, errors.New("connection reset"))
	if s.take(); s.NextBatch(s.now) != nil {
		t.Error("the cost is sent again at once")
	}
	if s.pass(MaxRetryPause); s.batch().X.MoveMicros != 3000 {
		t.Error("the repeat does not report the cost")
	}
	s.CallFailed(s.now, s.call(), errors.New("connection reset"))
	if s.moveCost != 0 {
		t.Error("a failed call that reported no cost returns one")
	}
}

// An offer is a level: the latest one counts, and a pool has one offer. The answer says how much of
// it Redis needs.
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
		t.Errorf("told %q and %q, want one recall and the news of a waiter for the first pool",
			a.told, b.told)
	}
	if second := s.batch(); second.X.Offered != 1 || second.X.Offerer != b.name {
		t.Errorf("%s offers %d, want 1 of the second pool", second.X.Offerer, second.X.Offered)
	}
}

// A pool is full if it waits and Redis has answered that no permit is free.
func TestAPoolIsFullOnceRedisHasAnswered(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.ask(1)
	b := s.batch()
	if p.Full() {
		t.Error("the pool is full before an answer")
	}
	s.answer(b, message.Exchanged{Waiting: 1, Free: 1}) // held back for another
	if p.Full() {
		t.Error("the pool is full, although a permit is free")
	}
	s.Resubscribed(s.now)
	if s.answer(s.batch(), queued); !p.Full() {
		t.Error("the pool is not full, although no permit is free")
	}
	if s.grantPushed(s.now, p.request.ids[0]); p.Full() {
		t.Error("the pool is full, although it waits for nothing")
	}
}
