package core

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Redis does not know the session, so it has executed nothing of the batch. All of it goes back
// into the outbox, ahead of later requests. It waits for a call that was made afterwards: Redis may
// have executed an earlier one before it forgot the session.
func TestABatchThatIsGoneWaitsForALaterCall(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	held := s.acquire()
	pool := s.pool()
	s.release(held)
	p, _ := s.wantsOne(message.Wait)
	s.Moved(s.now, &pool.Pool, time.Millisecond)
	before := s.call()
	s.returnMoveCost(before.X.MoveMicros) // so that the batch says it
	b := s.batch()
	q, _ := s.wantsOne(message.Try)
	s.seen = Effects{}
	s.BatchFailed(s.now, b, Gone, message.ErrGone)
	s.take()
	if !s.seen.Heartbeat || s.seen.Flush || s.Down() != nil || len(s.seen.Settled) != 0 {
		t.Errorf("the effects are %+v, want a call of the heartbeat alone", s.seen)
	}
	if s.NextBatch(s.now) != nil {
		t.Fatal("the batch is sent before a call is answered")
	}
	s.renew(before)
	if s.NextBatch(s.now) != nil {
		t.Fatal("the batch is sent after the answer to an earlier call")
	}
	after := s.call()
	if s.renew(after); !s.seen.Flush {
		t.Fatal("the batch is not sent after the answer to a later call")
	}
	again := s.batch()
	if !slices.Equal(again.dropped(), []string{held.ID}) || !slices.Equal(again.asks(), []string{p.ID, q.ID}) {
		t.Errorf("sent %+v, want the former batch, then the later request", again.X)
	}
	if after.X.MoveMicros+again.X.MoveMicros != 1000 {
		t.Errorf("the call reports %d us for a move, the batch %d; want 1000 once",
			after.X.MoveMicros, again.X.MoveMicros)
	}
}

// A call finds first that Redis lost its state, and the session asks again for all that waits. A
// request that is in flight then was made before those that came since, and stays before them.
func TestABatchThatIsGoneKeepsItsTurn(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	p, _ := s.wantsOne(message.Wait)
	b := s.batch()
	q, _ := s.wantsOne(message.Wait)
	s.state = "another"
	s.renew(s.call())
	s.BatchFailed(s.now, b, Gone, message.ErrGone)
	s.renew(s.call())
	if again := s.batch(); !slices.Equal(again.asks(), []string{p.ID, q.ID}) {
		t.Errorf("asks for %q, want %q first", again.asks(), p.ID)
	}
}

// The answer to a call shows another state. The core sends nothing until a call that re-asserts
// everything is answered.
func TestABatchThatIsGoneWaitsUntilAllIsReasserted(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	s.acquire()
	s.wantsOne(message.Wait)
	b := s.batch()
	s.BatchFailed(s.now, b, Gone, message.ErrGone)
	k := s.call()
	q := s.NewPermit()
	s.hold(s.now, q, s.now+ttl-margin) // granted while the call was on its way
	s.state = "another"
	s.renew(k)
	if s.NextBatch(s.now) != nil {
		t.Fatal("a batch is sent before all permits are re-asserted")
	}
	s.renew(s.call())
	if b := s.batch(); b.X.Epoch != "another" || len(b.requests) != 1 {
		t.Errorf("sent %+v, want one request, in the new state", b.X)
	}
}

// A call has been answered, and still Redis does not know the session: perhaps calls reach another
// server than batches. The batch is repeated after a pause. Otherwise the core would send batches
// and calls in turn, as fast as they are answered, and no caller would hear of it.
func TestABatchThatIsGoneTwiceIsRepeatedAfterAPause(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	s.beat = s.renew
	_, try := s.wantsOne(message.Try)
	p, wait := s.wantsOne(message.Wait)
	for range 2 {
		s.BatchFailed(s.now, s.batch(), Gone, message.ErrGone)
		s.take()
	}
	if !errors.Is(try.err, ErrUnavailable) || wait.settled {
		t.Errorf("the request that does not wait ends with %v; the one that waits is settled: %v",
			try.err, wait.settled)
	}
	s.batch() // which drops what may have been granted
	s.BatchFailed(s.now, s.inFlight, Gone, message.ErrGone)
	s.take()
	if got := s.batch().asks(); len(got) != 0 {
		t.Errorf("the core asks for %q at once", got)
	}
	s.answer(s.inFlight, all)
	s.seen = Effects{}
	if s.pass(MaxRetryPause - 1); s.seen.Flush {
		t.Error("the batch is repeated without a pause")
	}
	if s.pass(MaxRetryPause / 4); !slices.Equal(s.batch().asks(), []string{p.ID}) {
		t.Error("the batch is not repeated after a pause")
	}
}

// blocks is a session that Redis does not know. A release and two requests, one of which waits in
// the queue, are blocked until a call is answered.
func blocks(t *testing.T) (s *stage, try, wait *Request, drop *Drop) {
	t.Helper()
	s = start(t, Config{Capacity: 3})
	held := s.acquire()
	_, try = s.wantsOne(message.Try)
	_, wait = s.wantsOne(message.Wait)
	drop = s.release(held)
	drop.Done = make(chan struct{})
	s.BatchFailed(s.now, s.batch(), Gone, message.ErrGone)
	s.take()
	return s, try, wait, drop
}

// failed checks that the release and the request that does not wait have failed. The next batch
// drops their permits, and asks again for the request that waits.
func failed(t *testing.T, s *stage, try, wait *Request, drop *Drop) {
	t.Helper()
	if !errors.Is(try.err, ErrUnavailable) {
		t.Errorf("the request that does not wait: settled %v, with %v", try.settled, try.err)
	}
	if !errors.Is(drop.Err, ErrUnavailable) || !slices.Contains(s.seen.Dropped, drop) {
		t.Errorf("the release ends with %v, want ErrUnavailable", drop.Err)
	}
	if wait.settled {
		t.Errorf("the request that waits has failed: %v", wait.err)
	}
	s.beat = s.renew
	s.pass(ttl / 2)
	b := s.batch()
	if !slices.Contains(b.dropped(), drop.ids[0]) || !slices.Contains(b.dropped(), try.ids[0]) ||
		!slices.Equal(b.asks(), wait.ids) {
		t.Errorf("sent %+v, want the release, what may have been granted, and the request that waits", b.X)
	}
}

// All calls that the batch could go on with fail.
func TestABlockedBatchFailsWithTheCall(t *testing.T) {
	s, try, wait, drop := blocks(t)
	first := s.call()
	s.pass(time.Second)
	hedge := s.call()
	reset := errors.New("connection reset")
	s.CallFailed(s.now, hedge, reset)
	if s.take(); try.settled {
		t.Fatal("the batch fails while a call that suffices is in flight")
	}
	s.CallFailed(s.now, first, reset)
	s.take()
	failed(t, s, try, wait, drop)
}

// No call fails, and none is answered: Redis is silent.
func TestABlockedBatchFailsAfterASilence(t *testing.T) {
	s, try, wait, drop := blocks(t)
	s.beat = func(*Call) {}
	s.call()
	if s.pass(s.Silence() - 1); try.settled {
		t.Fatal("the batch fails before Redis was silent for that long")
	}
	s.pass(1)
	failed(t, s, try, wait, drop)
}

// A call fails, but an earlier one, which also suffices, is answered in time.
func TestABlockedBatchGoesOnWithAnyCall(t *testing.T) {
	s, try, wait, drop := blocks(t)
	first, second := s.call(), s.call()
	s.CallFailed(s.now, second, errors.New("connection reset"))
	s.seen = Effects{}
	s.renew(first)
	if try.settled || wait.settled || drop.known {
		t.Error("the batch fails, although a call is answered")
	}
	if b := s.batch(); len(b.requests) != 2 || len(b.drops) != 1 {
		t.Errorf("sent %+v, want the whole batch", b.X)
	}
	if s.pass(2 * ttl); try.settled {
		t.Error("the batch fails later, while it is in flight")
	}
}

// No call was answered for a lease, so Redis may have forgotten the session. The core sends nothing
// until an answer comes to a call that was sent within a lease. A call that is in flight already
// suffices.
func TestNothingIsSentForALeaseWithoutACall(t *testing.T) {
	s := start(t, Config{})
	s.pass(ttl - time.Second)
	k := s.call()
	s.pass(time.Second)
	s.seen = Effects{}
	s.wantsOne(message.Wait)
	if s.seen.Flush || s.NextBatch(s.now) != nil {
		t.Fatal("a batch is sent, although no call was answered for a lease")
	}
	if s.seen.Heartbeat {
		t.Error("another call is made, although a call that suffices is in flight")
	}
	if s.renew(k); !s.seen.Flush {
		t.Error("no batch is sent, although the call is answered")
	}
	s.batch()

	s = start(t, Config{})
	s.pass(ttl)
	s.seen = Effects{}
	if s.wantsOne(message.Wait); s.seen.Flush || !s.seen.Heartbeat {
		t.Errorf("no call is in flight: a batch %v, a call %v; want a call alone",
			s.seen.Flush, s.seen.Heartbeat)
	}
}

// The reply comes a lease after its call was sent. It proves nothing about the present, so the core
// makes another call.
func TestACallThatTookALeaseProvesNothing(t *testing.T) {
	s := start(t, Config{})
	k := s.call()
	s.pass(ttl)
	s.wantsOne(message.Wait)
	s.seen = Effects{}
	if s.renew(k); s.seen.Flush || !s.seen.Heartbeat {
		t.Errorf("after the late reply: a batch %v, a call %v; want a call alone",
			s.seen.Flush, s.seen.Heartbeat)
	}
	if s.renew(s.call()); !s.seen.Flush {
		t.Error("no batch is sent after a call that was answered in time")
	}
}
