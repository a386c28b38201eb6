package semaphore

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

const (
	// batchMost bounds one exchange, so that no script keeps Redis from others for long.
	batchMost = 256
	// shareMost bounds how many permits a pool asks for at once. It is WANTS in shares.lua.
	shareMost = 16
)

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
	case errors.Is(err, redisscript.ErrGone) || errors.Is(err, errUnproven):
		s.landed()
		s.mu.Lock()
		s.putBack(b) // where Close finds it
		s.mu.Unlock()
		if caller {
			return
		}
		renew := s.beat
		if errors.Is(err, errUnproven) {
			renew = s.awaitRenewal
		}
		err = renew(s.ctx)
		s.mu.Lock()
		b = s.nextBatch()
		s.mu.Unlock()
		if b == nil {
			return
		}
		if err == nil {
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

// errUnproven is why a flight has to wait: no call of the last lease's time has been answered. Redis may have
// forgotten that there is a session whose leases are this short, and take a larger step of its clock for
// none. A call has to say so first.
var errUnproven = errors.New("no heartbeat was answered for a lease")

// unproven reports whether a flight has to wait for that. s.mu is held.
func (s *Semaphore) unproven(now time.Duration) bool { return now-s.renewed >= s.cfg.TTL }

// exchange sends a batch, and returns when it was sent.
func (s *Semaphore) exchange(b *batch) (sent time.Duration, got redisscript.Exchanged, err error) {
	s.mu.Lock()
	sent = s.sinceStart()
	if s.unproven(sent) {
		s.mu.Unlock()
		return sent, got, errUnproven
	}
	b.x.Epoch, b.x.Expected = s.epoch, s.anchor.expected(sent)
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
