package core

import (
	"errors"
	"slices"
	"testing"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The shell is told twice to send, before its sender has begun. Both senders ask for a batch, and
// one gets it: batches never overlap. A request that is made meanwhile travels in the next batch.
func TestTwoFlushesStartOneBatch(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	ask := func() string {
		r := &Request{Kind: message.Wait, Permits: []*Permit{s.NewPermit()}}
		s.Submit(s.now, r)
		return r.ids[0]
	}
	p := ask()
	if !s.Take().Flush {
		t.Fatal("the core does not tell the shell to send")
	}
	q := ask()
	if !s.Take().Flush {
		t.Fatal("bug in the test: the core believes that a sender has begun")
	}
	b := s.NextBatch(s.now)
	if s.NextBatch(s.now) != nil {
		t.Fatal("a second batch begins beside the first")
	}
	if !slices.Equal(b.asks(), []string{p, q}) {
		t.Errorf("the batch asks for %q, want %q and %q", b.asks(), p, q)
	}
	r := ask()
	if s.Take().Flush || s.NextBatch(s.now) != nil {
		t.Error("a request is sent beside the batch in flight")
	}
	s.BatchAnswered(s.now, b, all, false)
	if !s.Take().Flush {
		t.Error("the request that waited for the batch is not sent")
	}
	if next := s.batch(); !slices.Equal(next.asks(), []string{r}) {
		t.Errorf("the next batch asks for %q, want %q", next.asks(), r)
	}
}

// The core does not tell the shell to send once nothing is left to send.
func TestNoFlushOfNothing(t *testing.T) {
	s := start(t, Config{})
	r := &Request{Kind: message.Wait, Permits: []*Permit{s.NewPermit()}}
	s.Submit(s.now, r)
	_ = s.GiveUp(s.now, r, 0)
	if s.Take().Flush || s.NextBatch(s.now) != nil {
		t.Error("an empty batch is sent")
	}
}

// No script keeps Redis busy for long: a batch has at most maxBatch permits, and the rest goes with
// the next batches, in order.
func TestABatchIsBounded(t *testing.T) {
	s := start(t, Config{Capacity: 1000})
	var want, got []string
	for range 2*maxBatch + 1 {
		p, _ := s.wantsOne(message.Wait)
		want = append(want, p.ID)
	}
	for i := range 3 {
		b := s.batch()
		if len(b.requests) > maxBatch {
			t.Errorf("batch %d asks for %d permits, the most is %d", i, len(b.requests), maxBatch)
		}
		got = append(got, b.asks()...)
		s.answer(b, all)
	}
	if !slices.Equal(got, want) || s.NextBatch(s.now) != nil {
		t.Errorf("asked for %d, in order: %v; want %d", len(got), slices.Equal(got, want), len(want))
	}
	for p := range s.permits {
		s.release(s.permits[p])
	}
	dropped := 0
	for range 3 {
		b := s.batch()
		if len(b.drops) > maxBatch {
			t.Errorf("a batch drops %d permits, the most is %d", len(b.drops), maxBatch)
		}
		dropped += len(b.drops)
		s.answer(b, all)
	}
	if dropped != len(want) {
		t.Errorf("dropped %d, want %d", dropped, len(want))
	}
}

// Redis did not answer, so nobody knows what it executed. Requests that do not wait fail, and the
// core drops at once what they may have been granted. Requests that wait, and releases, are
// repeated after a pause.
func TestAFailedBatchIsRepeatedAfterAPause(t *testing.T) {
	s := start(t, Config{Capacity: 3})
	held := s.acquire()
	extended := s.acquire()
	extends := s.extend(extended)
	try, failing := s.wantsOne(message.Try)
	wait, waiting := s.wantsOne(message.Wait)
	drop := s.release(held)
	s.BatchFailed(s.now, s.batch(), Failed, errors.New("connection reset"))
	s.take()
	if !errors.Is(failing.err, ErrUnavailable) || !errors.Is(extends.err, ErrUnavailable) || waiting.settled {
		t.Errorf("the try ends with %v, the extension with %v, the request that waits with %v",
			failing.err, extends.err, waiting.err)
	}
	if !s.holds(extended) {
		t.Error("the permit to be extended is lost, although it is trusted")
	}
	if !drop.known || !errors.Is(drop.Err, ErrUnavailable) {
		t.Errorf("the release ends with %v, want ErrUnavailable", drop.Err)
	}
	at := s.now
	b := s.batch()
	if !slices.Equal(b.dropped(), []string{try.ID}) || len(b.asks()) != 0 {
		t.Errorf("sent %+v at once, want a drop of what may have been granted", b.X)
	}
	s.answer(b, all)
	s.seen = Effects{}
	if s.pass(MaxRetryPause - 1); s.seen.Flush {
		t.Error("repeated without a pause")
	}
	s.pass(1)
	b = s.batch()
	if !slices.Equal(b.dropped(), []string{held.ID}) || !slices.Equal(b.asks(), []string{wait.ID}) {
		t.Errorf("sent %+v after %v, want the release and the request that waits", b.X, s.now-at)
	}
}

// A failed drop is repeated for a lease. Only if the permit covers a backend, which Redis counts
// beyond the lease, does the session repeat it for longer.
func TestDropsAreRepeatedForALease(t *testing.T) {
	for _, covered := range []bool{false, true} {
		s := start(t, Config{Capacity: 3})
		p := s.acquire()
		if covered {
			s.RecordBackend(p, "1 2 3")
		}
		s.release(p)
		s.beat = s.renew
		released, failed := s.now, s.now
		for s.now < released+2*ttl {
			if b := s.NextBatch(s.now); b != nil {
				s.BatchFailed(s.now, b, Failed, errors.New("connection reset"))
				s.take()
				failed = s.now
			}
			s.pass(MaxRetryPause)
		}
		if again := failed >= released+ttl+MaxRetryPause; again != covered {
			t.Errorf("covers a backend: %v; dropped last %v after its release", covered, failed-released)
		}
	}
}
