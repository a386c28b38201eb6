package semaphore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

const (
	// batchMost bounds one exchange, so that no script keeps Redis from others for long.
	batchMost = 256
	// shareMost bounds how many permits a pool asks for at once. It is WANTS in shares.lua.
	shareMost = 16
)

type offer struct {
	share *Share
	n     int
}

// fly starts a flight unless one is under way: what is asked for meanwhile travels together in
// the next one. s.mu is held.
func (s *Semaphore) fly() {
	if s.flying || s.left || s.nothingToSend() {
		return
	}
	s.flying = true
	s.wg.Add(1)
	go s.flight()
}

// send is fly for a caller who is going to wait for the outcome: if no flight is under way he carries the first batch himself. It is entered
// with s.mu held, and leaves without. While Redis is known not to answer nobody carries: he could be held up. limit is how long
// he waits if ctx does not end earlier, 0 if ctx alone bounds it.
func (s *Semaphore) send(ctx context.Context, limit time.Duration) {
	if s.flying || s.left || s.down != nil || s.nothingToSend() || s.wires == nil && (ctx.Done() != nil || limit > 0) {
		s.fly()
		s.mu.Unlock()
		return
	}
	s.flying = true
	s.flights++
	mine, grace := s.flights, cutGrace+min(4*s.roundTrip, 10*cutGrace)
	s.wg.Add(1)
	s.mu.Unlock()
	giveUp := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.carried < mine { // else it has landed
			s.cut = true
			s.wires.cut()
		}
	}
	if limit > 0 {
		defer time.AfterFunc(limit+grace, giveUp).Stop()
	}
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, giveUp) })()
	}
	s.carry(true)

	s.mu.Lock()
	s.carried, s.cut = mine, false
	if s.nothingToSend() {
		s.land()
	} else {
		go s.flight() // others have gathered; their requests are not his to wait for
	}
	s.mu.Unlock()
}

func (s *Semaphore) nothingToSend() bool {
	return len(s.outbox)+len(s.drops)+len(s.offers) == 0 && !s.confirms
}

// land ends the flight under way. s.mu is held.
func (s *Semaphore) land() {
	s.flying = false
	s.returned.Broadcast()
	s.wg.Done()
}

// flight exchanges batches until nothing is left to send. Batches of one session never overlap, so a
// withdrawal always reaches Redis after the request it withdraws.
func (s *Semaphore) flight() {
	for {
		s.carry(false)
		s.mu.Lock()
		if s.nothingToSend() {
			s.land()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

// carry exchanges one batch. Every part of it is safe to repeat, and is: at once if the connection was broken, after joining again if Redis
// does not know us (any more). A caller does not stay for that.
func (s *Semaphore) carry(caller bool) {
	s.mu.Lock()
	b := s.nextBatch()
	s.mu.Unlock()
	if b == nil {
		return
	}
	sent, got, err := s.exchange(b)
	switch {
	case errors.Is(err, redisscript.ErrGone) && caller:
		s.mu.Lock()
		s.aloft = nil
		s.putBack(b)
		s.mu.Unlock()
		return
	case errors.Is(err, redisscript.ErrGone):
		s.landed()
		if err = s.beat(s.ctx); err == nil {
			sent, got, err = s.exchange(b)
		}
	case err != nil && (s.landed() || isBroken(err)):
		b.x.Offered = 0 // the answer to it may be what was lost, and would be another the second time: the heartbeat tells it
		sent, got, err = s.exchange(b)
	}
	if err != nil {
		s.landed()
		s.mu.Lock()
		if s.cut {
			// That is no word on Redis. The others of the batch are sent again, by a goroutine.
			s.putBack(b)
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		lookAround(s.ctx, s.flightClient)
		s.failed(b, err)
		return
	}
	s.arrived(b, sent, got)
	if b.offer != nil && b.x.Offered == 0 {
		s.beatSoon()
	}
}

// exchange sends a batch, and returns when it was sent.
func (s *Semaphore) exchange(b *batch) (sent time.Duration, got redisscript.Exchanged, err error) {
	s.mu.Lock()
	sent = s.sinceStart()
	b.x.Epoch, b.x.Expected = s.epoch, s.anchor.expected(sent)
	if sent-s.renewed >= s.cfg.TTL {
		// Redis may have forgotten that there is a session whose leases are this short, and take a larger step of
		// its clock for none. We have to say so first.
		b.x.Epoch = ""
	}
	s.aloft, s.aloftSince = b, sent
	ctx, cancel := s.ctx, func() {}
	if s.wires == nil {
		ctx, cancel = context.WithTimeout(ctx, s.patienceOfCalls())
	} else if s.aloftWatch == nil {
		s.aloftWatch = time.AfterFunc(s.deadAfter(), s.lookAtFlight)
	}
	s.mu.Unlock()
	got, err = b.x.Run(ctx, s.scripter(s.flightClient), s.keys)
	cancel()
	return sent, got, err
}

// patienceOfCalls bounds a call whose connection we cannot cut, or that has no other to take its place:
// longer than replies have been seen to take. s.mu is held.
func (s *Semaphore) patienceOfCalls() time.Duration {
	return max(s.cfg.TTL/4, min(3*s.heart.rtt, s.cfg.TTL-s.margin))
}

// deadAfter is how old a flight is before we ask whether its connection is dead. s.mu is held.
func (s *Semaphore) deadAfter() time.Duration {
	return max(min(s.cfg.TTL/5, time.Second), 3*s.heart.rtt+hedgeLeast)
}

// lookAtFlight cuts the connection of a flight that a slow Redis does not explain: a call of the heartbeat
// was sent after it, over another connection, and has been answered. If there was none yet it sends one.
// While Redis answers nothing at all, the flight stays: its reply may come, too. Redis executes what it
// reads in the order in which connections are ready, so the reply of the flight could be late by little;
// it is waited for that little. A batch that is sent again is what it was (see carry).
//
// It is armed by the first flight, looks at those that are under way then, and rests when there is none: a
// flight that is answered in time pays nothing for it.
func (s *Semaphore) lookAtFlight() {
	s.mu.Lock()
	s.aloftWatch = nil
	if s.aloft == nil || s.left {
		s.mu.Unlock()
		return
	}
	h, now, probe := &s.heart, s.sinceStart(), false
	next := s.aloftSince + s.deadAfter() - now
	switch {
	case next > 0:
	case h.probed > s.aloftSince && now-h.heard >= max(h.rtt/2, hedgeLeast/5):
		s.hung = true
		s.wires.cut()
		next = s.deadAfter()
	case h.probed > s.aloftSince:
		next = max(h.rtt/2, hedgeLeast/5)
	default:
		probe = h.sent <= s.aloftSince
		next = max(h.rtt/2, hedgeLeast/5)
	}
	s.aloftWatch = time.AfterFunc(max(next, time.Millisecond), s.lookAtFlight)
	s.mu.Unlock()
	if probe {
		_, _ = s.call(2 * s.cfg.TTL)
	}
}

// landed notes that the batch under way was answered, or failed, and reports whether we cut its
// connection because it was dead.
func (s *Semaphore) landed() (hung bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hung, s.hung, s.aloft = s.hung, false, nil
	return hung
}

// isBroken reports whether err is of a connection that another one may not have.
func isBroken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.ErrClosedPipe)
}

// batch is one exchange and what it was made of.
type batch struct {
	x     redisscript.Exchange
	asks  []*ask
	drops []*drop
	offer *Share
}

// nextBatch takes the next batch from the outbox, or nil. s.mu is held.
func (s *Semaphore) nextBatch() *batch {
	b := &batch{}
	n := min(len(s.drops), batchMost)
	b.drops = append(b.drops, s.drops[:n]...)
	s.drops = remove(s.drops, n)
	for len(s.outbox) > 0 && len(b.asks) < batchMost {
		a := s.outbox[0]
		s.outbox = remove(s.outbox, 1)
		a.queued = false
		if !a.settled { // by the reply to an earlier time it was sent: it may even be released by now
			b.asks = append(b.asks, a)
		}
	}
	if len(s.offers) > 0 {
		b.offer = s.offers[0].share
		b.x.Offered, b.x.Offerer = s.offers[0].n, b.offer.name
		s.offers = s.offers[1:]
	}
	if len(b.drops)+len(b.asks) == 0 && b.offer == nil && !s.confirms {
		return nil
	}
	b.x.Session, b.x.TTLMillis, b.x.MostWaiting = s.identity.session, s.ttlMillis(), s.cfg.MaxWaiters
	b.x.MoveMicros = s.takeMoveCost()
	// Permits of a session with a minimum are counted one by one.
	lean := s.cfg.Min == 0
	for _, d := range b.drops {
		if lean && d.plain {
			b.x.Release = append(b.x.Release, d.ids[0])
		} else {
			b.x.Drop = append(b.x.Drop, redisscript.Request(s.ttlMillis(), d.ids...))
		}
	}
	for _, a := range b.asks {
		a.sent = true
		switch alone := lean && len(a.ids) == 1; {
		case alone && a.kind == redisscript.Wait:
			b.x.Waits = append(b.x.Waits, a.ids[0])
		case alone && a.kind == redisscript.Try && a.permits[0].share == nil: // the script counts a pool's permits in its own lane
			b.x.Tries = append(b.x.Tries, a.ids[0])
		default:
			kind := a.kind
			if a.share != nil && kind == redisscript.Share && !a.share.everHeld {
				kind = redisscript.Join
			}
			b.x.Ask = append(b.x.Ask, redisscript.Ask{Kind: kind, Request: redisscript.Request(s.ttlMillis(), a.ids...)})
		}
	}
	return b
}

// remove drops the first n elements and lets go of the array when none is left.
func remove[T any](list []T, n int) []T {
	if n == len(list) {
		return nil
	}
	return list[n:]
}

// putBack returns a batch to the outbox, as if it had not been sent. s.mu is held.
func (s *Semaphore) putBack(b *batch) {
	s.returnMoveCost(b.x.MoveMicros)
	s.drops = append(b.drops, s.drops...)
	var asks []*ask
	for _, a := range b.asks {
		if !a.settled && !a.queued {
			a.queued = true
			asks = append(asks, a)
		}
	}
	s.outbox = append(asks, s.outbox...)
}

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
		if (d.covered || now-d.since < s.cfg.TTL) && !s.left {
			s.late = append(s.late, d)
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

// retryMost bounds the pause before what Redis did not answer is said again.
const retryMost = 250 * time.Millisecond

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
		b.offer.told(b.x.Epoch, got.Promised, 0, true)
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
			if a := s.asks[id]; a != nil {
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
		case trusted <= s.sinceStart():
			// It took so long to hear of it that the lease may be over. Ask again, under the same name.
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

// pending reports whether Redis's queue holds anything of ours. s.mu is held.
func (s *Semaphore) pending() bool { return len(s.asks) > 0 }

// lookAgain repeats, after a pause, what is unanswered: requests that wait, in case their grant was pushed and
// lost, and drops that failed. The pause is jittered so that sessions spread. s.mu is held.
func (s *Semaphore) lookAgain(pause time.Duration) {
	at := s.sinceStart() + pause
	if s.closed || (s.again != nil && s.againAt <= at) {
		return
	}
	if s.again != nil {
		s.again.Stop()
	}
	s.againAt = at
	if pause > 10*time.Millisecond {
		pause += rand.N(pause / 8)
	}
	s.again = time.AfterFunc(pause, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.again = nil
		s.repeat()
	})
}

// repeat puts everything unanswered back into the outbox. s.mu is held.
func (s *Semaphore) repeat() {
	s.drops = append(s.drops, s.late...)
	s.late = nil
	s.confirms = s.moveCost > 0
	for id, a := range s.asks {
		if id == a.ids[0] && !a.behind {
			s.putOut(a)
		}
	}
	s.fly()
}
