package core

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Redis does not know the session, so it has done nothing of the batch. All of it goes back to
// where it was, before what came since, and waits for a call that was made after that. One that was
// made before may have been executed before Redis forgot.
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
		t.Errorf("want a call, and nothing else: %+v", s.seen)
	}
	if s.NextBatch(s.now) != nil {
		t.Fatal("sent without a call")
	}
	s.renew(before)
	if s.NextBatch(s.now) != nil {
		t.Fatal("sent after the answer to a call that was made before")
	}
	after := s.call()
	if s.renew(after); !s.seen.Flush {
		t.Fatal("not sent after the answer to a call that was made since")
	}
	again := s.batch()
	if !slices.Equal(again.dropped(), []string{held.ID}) || !slices.Equal(again.asks(), []string{p.ID, q.ID}) {
		t.Errorf("sent %+v, want what was sent, then what came since", again.X)
	}
	if after.X.MoveMicros+again.X.MoveMicros != 1000 {
		t.Errorf("a move is said to cost %d us by the call and %d by the batch, want 1000 once",
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

// While calls answer that the state is another one still, nothing is sent: the call that puts all
// back has not been answered.
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
		t.Fatal("sent before all that is held is put back")
	}
	s.renew(s.call())
	if b := s.batch(); b.X.Epoch != "another" || len(b.requests) != 1 {
		t.Errorf("sent %+v", b.X)
	}
}

// A call has been answered, and Redis does not know the session all the same: perhaps calls reach
// another server than batches. The batch is repeated after a pause. Both would be asked in turn
// otherwise, as fast as they answer, and nobody would be told.
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
		t.Errorf("the request that does not wait: %v; the one that waits: settled %v", try.err, wait.settled)
	}
	s.batch() // which drops what may have been granted
	s.BatchFailed(s.now, s.inFlight, Gone, message.ErrGone)
	s.take()
	if got := s.batch().asks(); len(got) != 0 {
		t.Errorf("asked for %q at once", got)
	}
	s.answer(s.inFlight, all)
	s.seen = Effects{}
	if s.pass(MaxRetryPause - 1); s.seen.Flush {
		t.Error("repeated without a pause")
	}
	if s.pass(MaxRetryPause / 4); !slices.Equal(s.batch().asks(), []string{p.ID}) {
		t.Error("not repeated after a pause")
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

// failed checks that what waited has failed, and that the rest is repeated.
func failed(t *testing.T, s *stage, try, wait *Request, drop *Drop) {
	t.Helper()
	if !errors.Is(try.err, ErrUnavailable) {
		t.Errorf("the request that does not wait: settled %v, %v", try.settled, try.err)
	}
	if !errors.Is(drop.Err, ErrUnavailable) || !slices.Contains(s.seen.Dropped, drop) {
		t.Errorf("the release: %v", drop.Err)
	}
	if wait.settled {
		t.Errorf("the request that waits has failed, too: %v", wait.err)
	}
	s.beat = s.renew
	s.pass(ttl / 2)
	b := s.batch()
	if !slices.Contains(b.dropped(), drop.ids[0]) || !slices.Contains(b.dropped(), try.ids[0]) ||
		!slices.Equal(b.asks(), wait.ids) {
		t.Errorf("sent %+v, want the release, what may have been granted, and the request that waits", b.X)
	}
}

// The call fails that everything waits for.
func TestWhatIsBlockedFailsWithTheCall(t *testing.T) {
	s, try, wait, drop := blocks(t)
	first := s.call()
	s.pass(time.Second)
	hedge := s.call()
	reset := errors.New("connection reset")
	s.CallFailed(s.now, hedge, reset)
	if s.take(); try.settled {
		t.Fatal("failed while another call is on its way that would do")
	}
	s.CallFailed(s.now, first, reset)
	s.take()
	failed(t, s, try, wait, drop)
}

// No call fails, and none is answered: Redis is silent.
func TestWhatIsBlockedFailsAfterASilence(t *testing.T) {
	s, try, wait, drop := blocks(t)
	s.beat = func(*Call) {}
	s.call()
	if s.pass(s.Silence() - 1); try.settled {
		t.Fatal("failed before Redis was silent for that long")
	}
	s.pass(1)
	failed(t, s, try, wait, drop)
}

// One call that would do is answered in time, after another has failed.
func TestWhatIsBlockedGoesOnWithAnyCall(t *testing.T) {
	s, try, wait, drop := blocks(t)
	first, second := s.call(), s.call()
	s.CallFailed(s.now, second, errors.New("connection reset"))
	s.seen = Effects{}
	s.renew(first)
	if try.settled || wait.settled || drop.known {
		t.Error("failed although a call is answered")
	}
	if b := s.batch(); len(b.requests) != 2 || len(b.drops) != 1 {
		t.Errorf("sent %+v, want all of it", b.X)
	}
	if s.pass(2 * ttl); try.settled {
		t.Error("failed later, while it is in flight")
	}
}

// No call was answered for a lease. Redis may have forgotten the session, so nothing is sent; any
// call that was sent within a lease ends that, also one that is on its way already.
func TestNothingIsSentForALeaseWithoutACall(t *testing.T) {
	s := start(t, Config{})
	s.pass(ttl - time.Second)
	k := s.call()
	s.pass(time.Second)
	s.seen = Effects{}
	s.wantsOne(message.Wait)
	if s.seen.Flush || s.NextBatch(s.now) != nil {
		t.Fatal("sent, although no call was answered for a lease")
	}
	if s.seen.Heartbeat {
		t.Error("another call is made, although one is on its way that would do")
	}
	if s.renew(k); !s.seen.Flush {
		t.Error("not sent although the call is answered")
	}
	s.batch()

	s = start(t, Config{})
	s.pass(ttl)
	s.seen = Effects{}
	if s.wantsOne(message.Wait); s.seen.Flush || !s.seen.Heartbeat {
		t.Errorf("sent: %v; want a call: %v", s.seen.Flush, s.seen.Heartbeat)
	}
}

// The reply comes a lease after its call was sent. It proves nothing of now, and another call is
// made.
func TestACallThatTookALeaseProvesNothing(t *testing.T) {
	s := start(t, Config{})
	k := s.call()
	s.pass(ttl)
	s.wantsOne(message.Wait)
	s.seen = Effects{}
	if s.renew(k); s.seen.Flush || !s.seen.Heartbeat {
		t.Errorf("sent: %v; want another call: %v", s.seen.Flush, s.seen.Heartbeat)
	}
	if s.renew(s.call()); !s.seen.Flush {
		t.Error("not sent after a call that was answered in time")
	}
}
