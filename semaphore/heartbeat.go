package semaphore

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// Trust. A lease is believed from before the request that made or renewed it was sent, on the local
// monotonic clock, for TTL less a margin: however late the reply, Redis cannot have started the lease before that.
//
//	sent              reply                    trusted until     expires in Redis
//	 |--- on its way ---|                            |                 |
//	 |<---------------- TTL - margin --------------->|<--- margin ---->|
//	      |<--------------------------- TTL -------------------------->|
//
// The heartbeat renews every TTL/3 and repeats what failed after TTL/12, so two calls can time out before anything is lost. The margin is for fencing.

// heartbeats renews the session until it ends.
func (s *Semaphore) heartbeats() {
	defer s.wg.Done()
	interval := s.cfg.TTL / 3
	next := interval
	for {
		timer := time.NewTimer(next - rand.N(next/8+1))
		select {
		case <-s.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		next = interval
		if err := s.beat(s.ctx); err != nil && s.ctx.Err() == nil && !errors.Is(err, ErrClosed) {
			next = s.cfg.TTL / 12
			s.log.Warn("heartbeat failed", "semaphore", s.base, "error", err)
		}
	}
}

// beat renews the session and all its permits in one round trip, on a connection of its own. What it
// says is what is held at that moment; a release or a grant that crosses it wins (see below).
func (s *Semaphore) beat(ctx context.Context) error {
	s.beating <- struct{}{}
	defer func() { <-s.beating }()
	for {
		if again, err := s.renew(ctx); !again {
			return err
		}
	}
}

// renew is one call of the heartbeat. It is to be repeated if Redis forgot, and a grant from before was still on its way to
// us, so that it was not among what was re-asserted. It is one flight at most, and there can be no other until the state is known.
func (s *Semaphore) renew(ctx context.Context) (again bool, err error) {
	n := redisscript.Renew{
		Session: s.identity.session, TTLMillis: s.ttlMillis(), Capacity: s.cfg.Capacity,
		Info: s.info, NewEpoch: uuid.NewString(), Min: s.cfg.Min,
	}
	s.mu.Lock()
	if s.left {
		s.mu.Unlock()
		return false, ErrClosed
	}
	n.Epoch, n.Limit, n.Roster, n.Expected = s.epoch, s.limit, s.roster, s.anchor.expected(s.sinceStart())
	said := make([]*Permit, 0, len(s.permits))
	for id, p := range s.permits {
		n.Permits = append(n.Permits, id)
		said = append(said, p)
		if p.backend != (Backend{}) && n.Backends == nil {
			n.Backends = make([]string, len(said)-1, len(s.permits))
		}
		if n.Backends != nil {
			n.Backends = append(n.Backends, p.covered())
		}
	}
	shares := append([]*Share(nil), s.shares...)
	var ended []*Share
	for _, sh := range shares {
		n.Sharers = append(n.Sharers, redisscript.Sharer{Name: sh.name, Held: sh.held})
		if sh.closed && sh.held == 0 {
			ended = append(ended, sh)
		}
	}
	n.MoveMicros = s.takeMoveCost()
	s.mu.Unlock()
	for i, sh := range shares {
		heard, owed := sh.owes()
		n.Sharers[i].Heard, n.Sharers[i].Owed = heard, min(owed, n.Sharers[i].Held)
	}

	ctx, cancel := context.WithTimeout(ctx, s.callTimeout())
	defer cancel()
	sent := s.sinceStart()
	got, err := n.Run(ctx, s.scripter(s.own), s.keys)
	if err != nil {
		lookAround(s.ctx, s.own)
	}

	s.mu.Lock()
	changed := s.setDown(err)
	if err != nil {
		s.returnMoveCost(n.MoveMicros)
		s.mu.Unlock()
		if changed {
			s.tellShares(func(sh Sharer) { sh.Changed() })
		}
		return false, err
	}
	s.anchor = anchor{local: sent, redis: got.Now}
	s.sharded = got.Sharded
	lostState := n.Epoch != "" && n.Epoch != got.Epoch
	s.limit, s.roster = got.Limit, got.Roster
	if again = lostState && s.holdsOtherThan(n.Permits); !again {
		s.epoch = got.Epoch
	}
	for _, sh := range ended {
		s.removeShare(sh)
	}
	if s.capacity != got.Capacity {
		if got.Capacity != int64(s.cfg.Capacity) {
			s.log.Warn("the fleet's capacity is not what this session declares", "semaphore", s.base, "declared", s.cfg.Capacity, "in force", got.Capacity)
		}
		s.capacity = got.Capacity
	}
	if got.Min < s.min {
		s.log.Warn("the fleet's minima exceed its capacity", "semaphore", s.base, "declared", s.cfg.Min, "kept", got.Min)
	}
	s.min = got.Min
	missing := make(map[string]bool, len(got.Missing))
	for _, id := range got.Missing {
		missing[id] = true
	}
	trusted := sent + s.cfg.TTL - s.margin
	for i, p := range said {
		id := n.Permits[i]
		switch {
		case s.permits[id] != p:
			// Released, or lost, while the heartbeat was on its way. That it is missing is no loss. But if state was lost, the
			// heartbeat may have put it back after its release: release it once more.
			if lostState && p.id != id {
				s.drop(id)
				s.fly()
			}
		case missing[id]:
			s.lose(p)
		default:
			p.trusted.Store(max(p.trusted.Load(), int64(trusted)))
		}
	}
	if lostState && !again {
		s.log.Warn("Redis lost its state: permits re-asserted", "semaphore", s.base, "held", len(said))
		s.repeat()
	} else if got.Gate > got.Now {
		s.lookAgain(until(got.Gate+1, got.Now))
	}
	s.mu.Unlock()
	s.tellShares(func(sh Sharer) {
		if changed {
			sh.Changed()
		}
		s.tellWanted(sh, got.Waiting > 0, sent)
	})
	s.forgetEnded(got.Quarantine)
	s.endBackends(got.Quarantine)
	for i, tally := range got.Recalls[:min(len(got.Recalls), len(shares))] {
		said := n.Sharers[i].Heard
		// With a state that is lost, what was owed to it is forgotten. Counts that have become less were deleted by somebody's hand.
		if lostState || tally.Recalled < said.Recalled || tally.Withdrawn < said.Withdrawn {
			shares[i].forgetOwed(tally)
		} else {
			shares[i].told(got.Epoch, tally, 0, false)
		}
	}
	return again, nil
}

// holdsOtherThan reports whether a permit is held that is not in ids. s.mu is held.
func (s *Semaphore) holdsOtherThan(ids []string) bool {
	still := 0
	for _, id := range ids {
		if s.permits[id] != nil {
			still++
		}
	}
	return len(s.permits) > still
}

// callTimeout bounds one call of the heartbeat, so that two that time out fit into the trusted part of a lease.
func (s *Semaphore) callTimeout() time.Duration { return s.cfg.TTL / 5 }

// setDown notes whether Redis answers, and reports whether that changed. s.mu is held.
func (s *Semaphore) setDown(err error) bool {
	changed := (err == nil) != (s.down == nil)
	s.down = err
	return changed
}

// watch makes sure that the watchdog looks at the permits at the given time, or earlier. s.mu is held.
func (s *Semaphore) watch(at time.Duration) {
	if s.closed || (s.watchdog != nil && s.watchAt <= at) {
		return
	}
	if s.watchdog != nil {
		s.watchdog.Stop()
	}
	s.watchAt = at
	s.watchdog = time.AfterFunc(at-s.sinceStart(), s.inspect)
}

// inspect loses the permits that can no longer be proven. It is independent of the heartbeat, which may be stuck.
func (s *Semaphore) inspect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchdog = nil
	now := s.sinceStart()
	var next time.Duration
	for _, p := range s.permits {
		switch until := time.Duration(p.trusted.Load()); {
		case until <= now:
			s.lose(p)
		case next == 0 || until < next:
			next = until
		}
	}
	if next != 0 {
		s.watch(next)
	}
}

// lose marks p lost. Redis is not told: the connection or the work under it may still be there, so the
// lease is left to expire, unless it is released. s.mu is held.
func (s *Semaphore) lose(p *Permit) {
	delete(s.permits, p.id)
	p.lose()
	s.log.Warn("lease lost", "semaphore", s.base, "permit", p.id)
	s.madeRoom()
	if p.share != nil {
		p.share.held--
		s.returned.Broadcast()
		if !p.delivering {
			go p.share.sharer.Lost(p)
		}
	}
}

// info is what operators see of a session.
type info struct {
	Owner  string `json:"owner"`
	Min    int    `json:"min,omitempty"`
	Max    int    `json:"max,omitempty"`
	Weight int    `json:"weight,omitempty"`
}

func encodeInfo(cfg Config) string {
	b, err := json.Marshal(info{Owner: cfg.Owner, Min: cfg.Min, Max: cfg.Max, Weight: cfg.Weight})
	if err != nil {
		panic("bug: an owner that JSON cannot hold: " + err.Error())
	}
	return string(b)
}
