package semaphore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// This file is what the session makes of the answer to a batch, or of its absence.

// failed handles a batch that Redis did not answer. Whether it was carried out is unknown. Drops and waiting requests are repeated after a
// pause; requests that do not wait fail.
func (s *Semaphore) failed(b *batch, err error) {
	s.mu.Lock()
	changed := s.setDown(err)
	if changed && redis.HasErrorPrefix(err, "READONLY") && !s.left {
		s.beatSoon() // the primary was demoted: does the subscription have to move, too?
	}
	s.returnMoveCost(b.x.MoveMicros)
	now := s.sinceStart()
	for _, d := range b.drops {
		select {
		case d.done <- unavailable(err):
		default:
		}
		if d.covered || now-d.since < s.cfg.TTL {
			s.late = append(s.late, d) // if the session has left, leaveForGood looks once more
		}
	}
	for _, a := range b.asks {
		if a.settled || waits(a.kind) {
			continue
		}
		s.settle(a, unavailable(err))
		if !a.extends {
			s.drop(a.ids...) // it may have been granted all the same
		}
	}
	s.lookAgain(min(s.cfg.RetryInterval, retryMost))
	s.mu.Unlock()
	if changed {
		s.tellShares(func(sh Sharer) { sh.Changed() })
	}
}

// arrived settles what Redis answered.
func (s *Semaphore) arrived(b *batch, sent time.Duration, got redisscript.Exchanged) {
	s.mu.Lock()
	changed := s.setDown(nil)
	s.aloft = nil
	if b.x.Epoch != "" && b.x.Epoch != s.epoch {
		// The heartbeat has found that Redis forgot, and this it did before. What it granted it forgot, too.
		s.putBack(b)
		s.mu.Unlock()
		return
	}
	if !got.All || len(b.asks) > 0 { // else the script did not look
		changed = s.setNoMemory(got.Full, got.Now) || changed
	}
	s.roundTrip = s.sinceStart() - sent
	s.heart.rtt = max(s.heart.rtt, s.roundTrip)
	if got.Now > 0 && sent >= s.anchor.local {
		s.anchor = anchor{local: sent, redis: got.Now}
	}
	for _, d := range b.drops {
		select {
		case d.done <- nil:
		default:
		}
	}
	for _, a := range b.asks {
		a.waited = a.waited || a.answered
		a.answered, a.full, a.noMemory = true, got.Free == 0, false
		if got.All {
			got.Granted = append(got.Granted, a.ids...)
		}
		if a.extends && a.settled {
			// Nobody waits for it any more. Should its permit be lost by now, the lease is left to expire (see lose).
			got.Granted = slices.DeleteFunc(got.Granted, func(id string) bool { return id == a.ids[0] })
		}
	}
	shared := s.granted(got.Granted, sent)
	for _, id := range got.Refused {
		if a := s.asks[id]; a != nil {
			if a.extends && s.permits[id] != nil {
				s.lose(a.permits[0]) // before its caller hears of it
			}
			if len(a.ids) > 1 {
				s.drop(a.ids...) // some may be held: the others were revoked by hand
			}
			s.settle(a, s.refusal(a))
		}
	}
	for _, id := range got.Crowded {
		if a := s.asks[id]; a != nil {
			s.settle(a, fmt.Errorf("%w: %d wait for %q already", ErrCapacity, got.Waiting, s.base))
		}
	}
	for _, id := range got.NoMemory {
		// A caller that waits asks again until its patience ends, as when Redis does not answer. It
		// has no place in the queue meanwhile.
		if a := s.asks[id]; a != nil {
			a.noMemory = true
			if !waits(a.kind) {
				s.settle(a, unavailable(errNoMemory))
			}
		}
	}
	if s.pending() {
		pause := s.cfg.RetryInterval - s.cfg.RetryInterval/8 // lookAgain adds up to as much
		if wake := until(got.Wake+1, got.Now); got.Wake > 0 && wake < pause {
			pause = max(wake, time.Millisecond)
		}
		s.lookAgain(pause)
	}
	s.mu.Unlock()

	s.deliver(shared)
	s.tellShares(func(sh Sharer) {
		if changed {
			sh.Changed()
		}
		s.tellWanted(sh, got.Waiting > 0, sent)
	})
	if b.offer != nil && got.Promised.Recalled > 0 {
		b.offer.told(b.x.Offerer, b.x.Epoch, got.Promised, 0, true)
	}
}

// errNoMemory is why Redis grants nothing new.
var errNoMemory = errors.New("OOM: Redis has reached maxmemory: " +
	"leases are renewed, but nothing new is granted or queued")

// setNoMemory notes whether Redis was out of memory at that time of its clock, and reports whether
// that is news. Replies of the heartbeat and of flights come in any order. s.mu is held.
func (s *Semaphore) setNoMemory(full bool, at int64) (changed bool) {
	if at < s.memoryAt {
		return false
	}
	s.memoryAt = at
	if full == (s.noMemory != nil) {
		return false
	}
	s.noMemory = nil
	if full {
		s.noMemory = errNoMemory
		s.log.Warn("Redis has reached maxmemory: leases are renewed, but nothing new is granted",
			"semaphore", s.base)
	}
	return true
}

// granted takes grants that count from the local time since. It returns those of
// connection pools, to be delivered once s.mu, which is held, is not.
func (s *Semaphore) granted(ids []string, since time.Duration) map[*Share][]*Permit {
	trusted := since + s.cfg.TTL - s.margin
	var shared map[*Share][]*Permit
	var hasty []*Permit
	for _, id := range ids {
		if p := s.permits[id]; p != nil { // an extension, or told twice
			p.trusted.Store(max(p.trusted.Load(), int64(trusted)))
			if a := s.asks[id]; a != nil && since >= a.since { // else an older grant, pushed, that extends nothing
				s.settle(a, nil)
			}
			if time.Duration(p.trusted.Load())-s.sinceStart() < s.roundTrip*4/3 {
				hasty = append(hasty, p)
			}
			continue
		}
		a := s.asks[id]
		switch {
		case a == nil:
			s.drop(id) // it crossed a withdrawal
			s.fly()
			continue
		case a.extends: // the lease was lost while this was on its way, and stays lost
			s.settle(a, fmt.Errorf("%w", ErrLost))
			continue
		case trusted-s.sinceStart() <= s.worthHolding():
			// It took so long to hear of it that the lease may be over, or will be before a renewal could
			// be answered. Ask again, under the same name.
			s.putOut(a)
			s.fly()
			continue
		}
		var got []*Permit
		for i, p := range a.permits {
			if a.share == nil || slices.Contains(ids, a.ids[i]) {
				s.hold(p, trusted)
				if trusted-s.sinceStart() < s.allowance() {
					hasty = append(hasty, p)
				}
				p.delivering = a.share != nil
				got = append(got, p)
			}
		}
		if a.share != nil {
			if shared == nil {
				shared = make(map[*Share][]*Permit)
			}
			shared[a.share] = append(shared[a.share], got...)
			a.share.moving = a.share.moving || a.waited
		}
		s.settle(a, nil)
	}
	// These were long on their way. The heartbeat will renew them, but perhaps over a connection that is to be
	// made first; the next flight asks for an extension, and is there earlier.
	for _, p := range hasty {
		if s.asks[p.id] == nil && !s.closed {
			a := s.newAsk(redisscript.Hold, nil, p)
			a.extends = true
			s.submit(a)
		}
	}
	if len(hasty) > 0 {
		s.fly()
	}
	return shared
}

// worthHolding is the least trust with which a new grant is taken: as much as a renewal takes, if one that
// is asked for again arrives with more than that. s.mu is held.
func (s *Semaphore) worthHolding() time.Duration {
	if rtt := s.heart.rtt; 2*rtt < s.cfg.TTL-s.margin {
		return rtt
	}
	return 0
}

// hold makes p held until trusted. s.mu is held.
func (s *Semaphore) hold(p *Permit, trusted time.Duration) {
	p.state, p.named = held, 0
	p.trusted.Store(int64(trusted))
	s.permits[p.id] = p
	if p.share != nil {
		p.share.held++
		p.share.everHeld = true
	}
	s.watch(trusted)
	s.sooner(trusted)
}

func (s *Semaphore) refusal(a *ask) error {
	if a.extends {
		return fmt.Errorf("%w: %q does not hold it any more", ErrLost, s.base)
	}
	if len(a.ids) > 1 {
		return fmt.Errorf("%w: %q has no room for %d permits together", ErrCapacity, s.base, len(a.ids))
	}
	return fmt.Errorf("%w: %q has no permit free", ErrCapacity, s.base)
}
