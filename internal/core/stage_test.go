package core

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A stage is one Core with a clock that stands still until the test moves it. The test plays Redis:
// it takes batches and calls, and hands in replies in the order that its interleaving needs. Pools
// are told their events as package engine tells them.
type stage struct {
	*Core
	tb    testing.TB
	now   time.Duration
	state string  // the epoch of the replies
	seen  Effects // all effects since the test last cleared this

	// beat plays Redis for the calls that the core makes. If it is nil, the test plays Redis
	// itself.
	beat    func(k *Call)
	tallies map[string]message.Tally // what Redis counts of recalls, by pool
	latest  bool                     // Config.Random returns the most that it may, not 0
}

const (
	ttl    = 5 * time.Second
	margin = ttl / 10
)

// start returns the stage of a session that has just joined.
func start(tb testing.TB, cfg Config) *stage {
	tb.Helper()
	s := &stage{tb: tb, now: time.Second, state: "e", tallies: make(map[string]message.Tally)}
	cfg.Base, cfg.Session, cfg.TTL, cfg.Margin = "passbuddy-semaphore", "000000a0-0001-8010", ttl, margin
	if cfg.RetryInterval == 0 {
		cfg.RetryInterval = 500 * time.Millisecond
	}
	if cfg.Capacity == 0 {
		cfg.Capacity = 1
	}
	epochs := 0
	cfg.NewPermit = func() *Permit { return new(Permit) }
	cfg.NewEpoch = func() string {
		epochs++
		return fmt.Sprint("new", epochs)
	}
	cfg.Random = func(below time.Duration) time.Duration {
		if s.latest {
			return below
		}
		return 0
	}
	s.Core = New(cfg)
	s.renew(s.call())
	s.Joined(s.now)
	s.seen = Effects{}
	return s
}

// redis converts a local time to Redis's clock.
func redis(at time.Duration) int64 { return 1_790_000_000_000 + at.Milliseconds() }

// take delivers to the pools the events that the core has for them, and adds all effects to seen.
func (s *stage) take() {
	s.tb.Helper()
	fx := s.Take()
	s.seen.Flush = s.seen.Flush || fx.Flush
	s.seen.Heartbeat = s.seen.Heartbeat || fx.Heartbeat
	s.seen.Replace = s.seen.Replace || fx.Replace
	if fx.Resend != nil {
		s.seen.Resend = fx.Resend
	}
	s.seen.Settled = append(s.seen.Settled, fx.Settled...)
	s.seen.Dropped = append(s.seen.Dropped, fx.Dropped...)
	s.seen.Trust = append(s.seen.Trust, fx.Trust...)
	s.seen.Events = append(s.seen.Events, fx.Events...)
	s.seen.End = append(s.seen.End, fx.End...)
	s.seen.Look = append(s.seen.Look, fx.Look...)
	s.seen.Logs = append(s.seen.Logs, fx.Logs...)
	for _, e := range fx.Events {
		s.deliver(e)
	}
	if fx.Heartbeat && s.beat != nil {
		if k := s.nextCall(); k != nil {
			s.beat(k)
		}
	}
	if s.cfg.Max > 0 && len(s.permits)+s.wants > s.cfg.Max {
		s.tb.Errorf("the session holds %d permits and asks for %d, Config.Max is %d",
			len(s.permits), s.wants, s.cfg.Max)
	}
	if len(fx.Events) > 0 {
		s.take()
	}
}

// pass lets time pass, with a Tick whenever the core is due. Before each it also tries an early
// Tick, which must do nothing.
func (s *stage) pass(d time.Duration) {
	s.tb.Helper()
	s.take()
	until := s.now + d
	for ticks := 0; ; ticks++ {
		at := s.WakeAt()
		if at == 0 || at > until {
			break
		}
		if ticks > 10_000 {
			s.tb.Fatalf("WakeAt is still %v after a Tick at %v", at, s.now)
		}
		if at-1 > s.now {
			s.Tick(at - 1)
			if fx := s.Take(); !reflect.DeepEqual(fx, Effects{}) || s.WakeAt() != at {
				s.tb.Errorf("a Tick before %v has effects %+v, and the next is due at %v", at, fx, s.WakeAt())
			}
		}
		s.now = max(s.now, at)
		s.Tick(s.now)
		s.take()
	}
	s.now = until
}

// batch takes the next batch. There must be one.
func (s *stage) batch() *Batch {
	s.tb.Helper()
	s.take()
	b := s.NextBatch(s.now)
	if b == nil {
		s.tb.Fatal("there is no batch to send")
	}
	s.take()
	return b
}

// answer hands in the reply to b.
func (s *stage) answer(b *Batch, got message.Exchanged) {
	s.tb.Helper()
	if got.Now == 0 && !got.All {
		got.Now = redis(s.now)
	}
	s.BatchAnswered(s.now, b, got, false)
	s.take()
}

// all is the reply that grants everything.
var all = message.Exchanged{All: true}

// queued is the reply that no permit is free.
var queued = message.Exchanged{Waiting: 1}

// nextCall makes a call if the core makes one.
func (s *stage) nextCall() *Call {
	s.tb.Helper()
	owed := make(map[*Pool]int)
	for _, p := range s.Pools() {
		if p, ok := p.Owner.(*pool); ok {
			owed[&p.Pool] = p.owed
		}
	}
	k := s.NextCall(s.now, owed)
	s.take()
	return k
}

// call makes a call of the heartbeat. The core must make one.
func (s *stage) call() *Call {
	s.tb.Helper()
	k := s.nextCall()
	if k == nil {
		s.tb.Fatal("there is no call to send")
	}
	return k
}

// renew hands in the reply to k that all is well.
func (s *stage) renew(k *Call) {
	s.tb.Helper()
	s.replied(k, message.Renewed{})
}

// replied hands in a reply to k. Fields that the test left out are set as if all were well.
func (s *stage) replied(k *Call, got message.Renewed) {
	s.tb.Helper()
	if got.Now == 0 {
		got.Now = redis(s.now)
	}
	if got.Epoch == "" {
		got.Epoch = s.state
	}
	if got.Capacity == 0 {
		got.Capacity = int64(s.cfg.Capacity)
	}
	if got.Recalls == nil {
		for _, p := range k.X.Pools {
			got.Recalls = append(got.Recalls, s.tallies[p.Name])
		}
	}
	got.Subscribers = max(got.Subscribers, 1)
	s.CallAnswered(s.now, k, got)
	s.take()
}

// request submits a request.
func (s *stage) request(kind message.Kind, permits ...*Permit) *Request {
	s.tb.Helper()
	r := &Request{Kind: kind, Permits: permits}
	s.Submit(s.now, r)
	s.take()
	return r
}

// wantsOne submits a request for one new permit.
func (s *stage) wantsOne(kind message.Kind) (*Permit, *Request) {
	s.tb.Helper()
	p := s.NewPermit()
	return p, s.request(kind, p)
}

// extend submits a request that extends p.
func (s *stage) extend(p *Permit) *Request {
	s.tb.Helper()
	r := &Request{Kind: message.Hold, Permits: []*Permit{p}, Extends: true}
	s.Submit(s.now, r)
	s.take()
	return r
}

// acquire has Redis grant a permit at once.
func (s *stage) acquire() *Permit {
	s.tb.Helper()
	p, r := s.wantsOne(message.Wait)
	s.answer(s.batch(), all)
	if !s.holds(p) || !r.settled {
		s.tb.Fatal("bug in the test: nothing was granted")
	}
	return p
}

// release gives p back. Redis hears of it with the next batch.
func (s *stage) release(p *Permit) *Drop {
	s.tb.Helper()
	d := s.Release(s.now, p)
	s.take()
	return d
}

// holds reports whether p is held.
func (s *stage) holds(p *Permit) bool { return p.State() == Held && s.now < p.TrustedUntil() }

// grantPushed pushes a grant that Redis made when our clock showed at.
func (s *stage) grantPushed(at time.Duration, ids ...string) {
	s.tb.Helper()
	// bound subtracts a millisecond, because Redis's clock is no finer.
	s.Pushed(s.now, message.Push{Kind: message.PushGrant, Epoch: s.state, Now: redis(at) + 1, IDs: ids})
	s.take()
}

// recall has Redis count n more recalls of a pool, and push the new count.
func (s *stage) recall(p *pool, n int64) {
	s.tb.Helper()
	tally := s.tallies[p.name]
	tally.Recalled += n
	s.tallies[p.name] = tally
	s.Pushed(s.now, message.Push{Kind: message.PushRecall, Epoch: s.state, Pool: p.name, Tally: tally})
	s.take()
}

// named returns the UUIDs in requests, which message.Permits made.
func named(requests []string) (ids []string) {
	for _, r := range requests {
		ids = append(ids, strings.Fields(r)[1:]...)
	}
	slices.Sort(ids)
	return ids
}

// asks returns the UUIDs that b asks for, in the order of b.
func (b *Batch) asks() (ids []string) {
	for _, r := range b.requests {
		ids = append(ids, r.ids...)
	}
	return ids
}

// dropped returns the UUIDs that b drops, in the order of b.
func (b *Batch) dropped() (ids []string) {
	for _, d := range b.drops {
		ids = append(ids, d.ids...)
	}
	return ids
}
