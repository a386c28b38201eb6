package semaphore

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// Trust. A lease is believed from before the request that made or renewed it was sent, on the local
// monotonic clock, for TTL less a margin: however late the reply, Redis cannot have started the lease
// before that.
//
//	sent              reply                    trusted until     expires in Redis
//	 |--- on its way ---|                            |                 |
//	 |<---------------- TTL - margin --------------->|<--- margin ---->|
//	      |<--------------------------- TTL -------------------------->|
//
// The margin is for fencing.
//
// When calls are sent. The session renews a third of a lease after the last call. Three things make
// the next one earlier:
//
//   - The last call is unanswered. It is hedged by another one, over another connection, at first
//     after twice the time that replies have been seen to take, then after four times as long, and at
//     last every fifth of a lease. The calls before it go on: a reply within the trusted time counts,
//     however late (see calls.go).
//   - The trust of a permit ends early, because its grant took long to arrive. It is renewed with 45 %
//     of a lease left, or with two round trips, one of them for a new connection, which is more where Redis
//     is slow. A lease
//     that a fast reply renewed has 57 % left when the regular call is due, so this adds no call then.
//   - The last call failed. It is repeated after a twelfth of a lease.

const (
	// hedgeLeast is how long a call is waited for before it is hedged, at the least: a pause of the
	// garbage collector, or of a busy scheduler, is no reason.
	hedgeLeast = 50 * time.Millisecond
	// hedgeMost bounds the time between two calls while Redis is silent, however long a lease is.
	hedgeMost = 5 * time.Second
)

// heartbeats sends the calls of the session until it ends.
func (s *Semaphore) heartbeats() {
	defer s.wg.Done()
	for {
		s.mu.Lock()
		s.heart.due = s.nextCall()
		wait := s.heart.due - s.sinceStart()
		silent := wait <= 0 && s.noteSilence()
		s.mu.Unlock()
		switch {
		case silent:
			s.tellShares(func(sh Sharer) { sh.Changed() })
			continue
		case wait <= 0:
			if _, err := s.call(2 * s.cfg.TTL); err == nil {
				continue
			}
			wait = s.cfg.TTL / 12 // the session has ended, or has too many calls on their way
		}
		timer := time.NewTimer(wait)
		select {
		case <-s.ctx.Done():
			timer.Stop()
			return
		case <-s.heart.poke:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// nextCall is when the heartbeat has to act next. s.mu is held.
func (s *Semaphore) nextCall() time.Duration {
	h, ttl := &s.heart, s.cfg.TTL
	at := h.sent + ttl/3 - h.jitter
	switch {
	case h.calls[h.last] != nil:
		at = h.sent + min(s.hedgeAfter()<<(2*min(h.hedges, 10)), ttl/5, hedgeMost)
	case h.failed > 0:
		at = h.failed + ttl/12 - h.jitter
	}
	if len(h.calls) >= callsMost {
		at = s.sinceStart() + ttl/5 // one that ends pokes us
	}
	least := h.sent + ttl/12 // permits come one by one; this keeps calls from doing so
	if h.failed > 0 {
		least = at
	}
	for _, p := range s.permits {
		if h.calls[p.named] == nil {
			at = min(at, max(time.Duration(p.trusted.Load())-s.allowance(), least))
		}
	}
	if h.silent > 0 && s.down == nil {
		at = min(at, h.silent+s.silence())
	}
	return at
}

// hedgeAfter is how long the first of a series of calls may take before another one is sent. s.mu is held.
func (s *Semaphore) hedgeAfter() time.Duration {
	if s.heart.rtt == 0 {
		return s.cfg.TTL / 5
	}
	return min(max(2*s.heart.rtt, hedgeLeast), s.cfg.TTL/5, hedgeMost)
}

// allowance is how much trust a permit has left when it is renewed, at the least. s.mu is held.
func (s *Semaphore) allowance() time.Duration {
	return max(s.cfg.TTL*45/100, min(2*s.heart.rtt, s.cfg.TTL))
}

// slowest is longer than replies have been seen to take.
func (s *Semaphore) slowest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return 2 * s.heart.rtt
}

// silence is how long Redis may be silent before it counts as away: longer than the replies take of a
// Redis that is slow, but renews leases in time. s.mu is held.
func (s *Semaphore) silence() time.Duration {
	return max(s.cfg.TTL/2, min(s.heart.rtt*5/2, s.cfg.TTL-s.margin))
}

// noteSilence notes that Redis does not answer, and reports whether that is news. s.mu is held.
func (s *Semaphore) noteSilence() bool {
	h := &s.heart
	if h.silent == 0 || s.down != nil || s.sinceStart() < h.silent+s.silence() {
		return false
	}
	s.log.Warn("heartbeat: no answer", "semaphore", s.base, "for", s.silence())
	return s.setDown(errSilent)
}

var errSilent = errors.New("no answer")

// sooner has the heartbeat look again when it has to act, if that may be before the end of trust that is
// given. s.mu is held.
func (s *Semaphore) sooner(trusted time.Duration) {
	if s.heart.due > 0 && trusted-s.allowance() < s.heart.due {
		s.pokeHeart()
	}
}

func (s *Semaphore) pokeHeart() {
	select {
	case s.heart.poke <- struct{}{}:
	default:
	}
}

// beat renews the session now, and returns once Redis has answered a call that was sent after beat
// began, or such a call has failed, or Redis was silent for half a lease. Calls go on without it.
func (s *Semaphore) beat(ctx context.Context) error {
	s.mu.Lock()
	limit := s.silence()
	s.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errSilent)
	defer cancel()
	return s.beatWithin(ctx, 2*s.cfg.TTL)
}

// beatWithin is beat for as long as ctx allows, with a call of at most that length.
func (s *Semaphore) beatWithin(ctx context.Context, limit time.Duration) error {
	mine, err := s.call(limit)
	if errors.Is(err, errManyCalls) {
		err = nil // the last of those has to do
	}
	for err == nil {
		s.mu.Lock()
		h := &s.heart
		ended, answered, failed, cause := h.ended, h.answered >= mine, !h.onTheWay(mine), h.err
		s.mu.Unlock()
		switch {
		case answered:
			return nil
		case failed && cause == nil:
			return ErrClosed // Redis has forgotten us, and we are leaving
		case failed:
			return cause
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

// awaitRenewal returns once a call has been answered that was sent within the last lease, or if Redis was
// silent for half a lease. Any call will do: what is on its way may be there earlier than a new one.
func (s *Semaphore) awaitRenewal(ctx context.Context) error {
	s.mu.Lock()
	limit := s.silence()
	s.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errSilent)
	defer cancel()
	for {
		s.mu.Lock()
		ended, under, unproven := s.heart.ended, len(s.heart.calls) > 0, s.unproven(s.sinceStart())
		s.mu.Unlock()
		switch {
		case !unproven:
			return nil
		case !under:
			return s.beatWithin(ctx, 2*s.cfg.TTL)
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
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
