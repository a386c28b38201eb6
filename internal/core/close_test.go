package core

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A session is closed while an operation of every kind is under way. Close settles every request.
// Leave returns every UUID that Redis may count or have in its queue, and none that was never sent.
func TestLeaveReturnsAllThatRedisMayCount(t *testing.T) {
	s := start(t, Config{Capacity: 20})
	failedLate := s.acquire()
	unsent, flying := s.acquire(), s.acquire()
	held := s.acquire()
	covers := s.acquire()
	s.RecordBackend(covers, "1 2 3")
	pool := s.pool()
	pool.gets(2)
	pool.ask(3)
	inQueue, waits := s.wantsOne(message.Wait)
	s.answer(s.batch(), queued)
	poolWaits := pool.request
	s.release(failedLate)
	s.BatchFailed(s.now, s.batch(), Failed, errors.New("connection reset"))
	s.release(flying)
	inFlight, crosses := s.wantsOne(message.Wait)
	tried, tries := s.wantsOne(message.Try)
	b := s.batch()
	s.release(unsent)
	never, neverSent := s.wantsOne(message.Wait)

	pool.obey = false
	kept := slices.Clone(pool.permits)
	pool.permits = nil // its connections do not end in time
	s.Close(s.now)
	s.take()
	for _, r := range []*Request{waits, poolWaits, crosses, tries, neverSent} {
		if !r.settled || !errors.Is(r.err, ErrClosed) {
			t.Errorf("a request is not settled by Close: %v", r.err)
		}
	}
	if pool.times("closed") != 1 {
		t.Errorf("the pool is told %q, want one that the session closes", pool.told)
	}
	if s.Returned() {
		t.Error("Returned, although a pool holds permits and a batch is in flight")
	}
	requests := s.Leave(s.now)
	s.take()
	want := []string{failedLate.ID, unsent.ID, flying.ID, held.ID, kept[0].ID, kept[1].ID, inQueue.ID,
		inFlight.ID, tried.ID}
	want = append(want, poolWaits.ids...)
	slices.Sort(want)
	if got := named(requests); !slices.Equal(got, want) {
		t.Errorf("Leave returns\n%q, want\n%q; %q covers a backend that may live, %q was never sent",
			got, want, covers.ID, never.ID)
	}
	// The queue holds a pool's request under its first UUID alone.
	if !slices.Contains(requests, message.Permits(ttl.Milliseconds(), poolWaits.ids[0])) {
		t.Errorf("Leave returns %q, which does not take the pool's request out of the queue",
			requests)
	}
	for _, p := range []*Permit{held, covers, kept[0]} {
		if p.State() != Lost || p.TrustedUntil() != 0 || !slices.Contains(s.seen.Trust, p) {
			t.Error("a permit is held after its session has left")
		}
	}

	// The batch in flight crosses the end, and Redis grants again what Leave has removed.
	if !s.Crossing() {
		t.Error("Crossing is false, although a batch is in flight")
	}
	s.seen = Effects{}
	s.answer(b, message.Exchanged{Granted: []string{inFlight.ID, tried.ID}})
	if s.seen.Flush || s.NextBatch(s.now) != nil || s.NextCall(s.now, nil) != nil {
		t.Error("a session that has left sends something")
	}
	if got := named(s.Leftover()); !slices.Contains(got, inFlight.ID) || !slices.Contains(got, tried.ID) {
		t.Errorf("Leftover returns %q, want the permits that were granted meanwhile", got)
	}
	if s.Crossing() {
		t.Error("Crossing is true, although all batches and calls are answered")
	}
}

// The drops of a batch in flight may never arrive. Leave returns them while the batch is
// unanswered, and Leftover returns them once it has failed.
func TestLeftoverHasTheDropsInFlight(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.acquire()
	s.release(p)
	b := s.batch()
	s.Close(s.now)
	if got := named(s.Leave(s.now)); !slices.Equal(got, []string{p.ID}) {
		t.Errorf("Leave returns %q, want the drop in flight", got)
	}
	s.BatchFailed(s.now, b, Failed, errors.New("connection reset"))
	if got := named(s.Leftover()); !slices.Equal(got, []string{p.ID}) {
		t.Errorf("Leftover returns %q, want the drop that failed", got)
	}
	if got := s.Leftover(); len(got) != 0 {
		t.Errorf("Leftover returns %q for the second time", got)
	}
}

// Redis does not answer a release while Close waits for pools. The session repeats the release as
// it leaves, and not before: there is no time for a pause.
func TestReleaseThatFailsDuringCloseIsRepeated(t *testing.T) {
	s := start(t, Config{})
	p := s.acquire()
	d := s.release(p)
	d.Done = make(chan struct{})
	b := s.batch()
	s.Close(s.now)
	s.BatchFailed(s.now, b, Failed, errors.New("connection reset"))
	s.take()
	if !slices.Contains(s.seen.Dropped, d) || !errors.Is(d.Err, ErrUnavailable) {
		t.Errorf("the caller of the release is told %v, want ErrUnavailable", d.Err)
	}
	if s.retryAt != 0 {
		t.Error("a closed session pauses to try again")
	}
	if !s.Returned() {
		t.Error("Close waits, although Redis does not answer")
	}
	if got := named(s.Leave(s.now)); !slices.Equal(got, []string{p.ID}) {
		t.Errorf("Leave returns %q, want the release", got)
	}
}

// Redis does not answer. Close does not wait for drops that are not sent, or not answered: the
// permits end with their leases.
func TestCloseDoesNotWaitForADeadRedis(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p, q := s.acquire(), s.acquire()
	s.release(p)
	s.BatchFailed(s.now, s.batch(), Failed, errors.New("connection reset"))
	s.release(q)
	s.Close(s.now)
	if s.take(); !s.Returned() {
		t.Error("Close waits for a release that Redis will not answer")
	}
	s.batch()
	if !s.Returned() {
		t.Error("Close waits for a batch that Redis will not answer")
	}
	want := []string{p.ID, q.ID}
	if got := named(s.Leave(s.now)); !slices.Equal(got, want) {
		t.Errorf("Leave returns %q, want %q", got, want)
	}
}

// A caller waits for the outcome of its release. If no batch has brought it by the time the session
// leaves, the script leave decides it.
func TestLeaveSettlesReleases(t *testing.T) {
	for _, err := range []error{nil, Unavailable(errSilent)} {
		s := start(t, Config{Capacity: 2})
		p, q := s.acquire(), s.acquire()
		inFlight := s.release(p)
		s.batch()
		unsent := s.release(q)
		inFlight.Done, unsent.Done = make(chan struct{}), make(chan struct{})
		s.Close(s.now)
		s.Leave(s.now)
		if s.take(); inFlight.known || unsent.known {
			t.Error("known before Redis has answered")
		}
		s.LeaveEnded(err)
		s.take()
		for _, d := range []*Drop{inFlight, unsent} {
			if !d.known || !errors.Is(d.Err, err) || !slices.Contains(s.seen.Dropped, d) {
				t.Errorf("known %v, %v; want %v", d.known, d.Err, err)
			}
		}
		if s.LeaveEnded(nil); len(s.seen.Dropped) != 2 {
			t.Error("told twice")
		}
	}
}

// The session withdraws its requests while it still listens, by the drops of a last batch. A grant
// that crosses the batch is dropped with it, and nobody holds the permit.
func TestAGrantThatCrossesCloseIsDropped(t *testing.T) {
	for name, grant := range map[string]func(s *stage, b *Batch, id string){
		"by a reply": func(s *stage, b *Batch, id string) { s.answer(b, all) },
		"by a push": func(s *stage, b *Batch, id string) {
			s.answer(b, queued)
			s.grantPushed(s.now, id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			p, r := s.wantsOne(message.Wait)
			b := s.batch()
			s.Close(s.now)
			s.take()
			if s.Returned() {
				t.Error("Close does not wait for the batch in flight")
			}
			if grant(s, b, p.ID); s.holds(p) || !errors.Is(r.err, ErrClosed) {
				t.Errorf("held %v, and its caller is told %v", s.holds(p), r.err)
			}
			if s.Returned() {
				t.Error("Close does not wait for the withdrawal")
			}
			last := s.batch()
			if !slices.Contains(last.dropped(), p.ID) || len(last.asks()) != 0 {
				t.Errorf("the last batch is %+v, want the withdrawal", last.X)
			}
			if s.answer(last, all); !s.Returned() {
				t.Error("Close still waits, although nothing is left to wait for")
			}
		})
	}
}

// Close waits for pools that hold permits. The pools give them back, and batches tell Redis.
func TestCloseWaitsForPools(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	p := s.pool()
	p.gets(2)
	permits := p.permits
	p.permits = nil // it is told, and its connections take their time
	s.Close(s.now)
	if s.take(); s.Returned() {
		t.Fatal("Close does not wait for the pool")
	}
	p.permits = permits
	p.give()
	s.answer(s.batch(), all)
	if s.Returned() {
		t.Error("Close does not wait for the second permit")
	}
	p.give()
	if s.take(); s.Returned() {
		t.Error("Close does not wait until Redis has heard of the last release")
	}
	if s.answer(s.batch(), all); !s.Returned() {
		t.Error("Close still waits, although nothing is left to wait for")
	}
	if got := s.Leave(s.now); len(got) != 0 {
		t.Errorf("Leave returns %q, want nothing", got)
	}
}

// Calls cross the end. Redis may execute them after the session has left, which makes the session
// join anew: the shell has it leave once more. No reply starts anything.
func TestACallThatCrossesTheEnd(t *testing.T) {
	s := start(t, Config{Capacity: 2})
	s.acquire()
	k, another := s.call(), s.call()
	s.Close(s.now)
	s.Leave(s.now)
	if s.take(); !s.Crossing() {
		t.Error("Crossing is false, although calls are in flight")
	}
	s.seen = Effects{}
	s.replied(k, message.Renewed{Epoch: "another", PausedUntil: redis(s.now) + 1000})
	s.replied(another, message.Renewed{Epoch: "a third"})
	if s.Crossing() {
		t.Error("Crossing is true, although all calls are answered")
	}
	if s.seen.Heartbeat || s.seen.Flush || s.seen.Replace || len(s.permits) != 0 {
		t.Errorf("a session that has left has the effects %+v", s.seen)
	}
}

// A closed session acquires nothing: it sends no request of a pool, and no offer.
func TestNothingIsAcquiredAfterClose(t *testing.T) {
	s := start(t, Config{})
	p := s.pool()
	s.Offer(s.now, &p.Pool, 1)
	s.Close(s.now)
	s.take()
	p.ask(1)
	s.Offer(s.now, &p.Pool, 1)
	s.pass(time.Second)
	if p.request != nil || s.NextBatch(s.now) != nil {
		t.Error("the session sends a request or an offer after Close")
	}
}
