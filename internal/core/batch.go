package core

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

const (
	// maxBatch bounds one batch, so that no script keeps Redis from others for long.
	maxBatch = 256
	// maxPoolRequest bounds how many permits a pool asks for at once. It is WANTS in the scripts.
	maxPoolRequest = 16
)

type offer struct {
	pool *Pool
	n    int
}

// A Batch is what travels in one exchange:
//
//	outbox, drops, offers --> NextBatch --> in flight --> BatchAnswered
//	     ^                                      |
//	     |       BatchFailed: Gone, ours        |  BatchFailed: drops, and requests that wait, after a pause
//	     +--------------------------------------+
//
// Every part of it is safe to repeat. At most one is in flight: what is asked for meanwhile travels
// together in the next one.
type Batch struct {
	X message.Exchange

	requests []*Request
	drops    []*Drop
	offer    *Pool
	sent     time.Duration
	again    time.Duration // when it was sent again last, 0: it was not
	resent   int           // how often it was sent once more because its connection seemed dead
	failed   int           // how many of those that were sent have failed
}

// Again is b as it is sent again now. The answer to an offer may be what was lost, and would be
// another the second time: the heartbeat tells it.
func (c *Core) Again(now time.Duration, b *Batch) message.Exchange {
	b.again = now
	x := b.X
	x.Offered, x.Expected = 0, c.anchor.expected(now)
	return x
}

// nothingToSend reports whether a batch would be empty.
func (c *Core) nothingToSend() bool {
	return len(c.outbox)+len(c.drops)+len(c.offers) == 0 && !c.confirms
}

// flush has the shell send what there is, unless a batch is in flight: then the next one takes it
// along.
func (c *Core) flush(now time.Duration) {
	if c.inFlight != nil || c.left || c.nothingToSend() {
		return
	}
	if c.blocked(now) {
		c.unblock(now)
		return
	}
	c.blockedSince = 0
	c.fx.Flush = true
}

// blocked reports whether nothing can be sent before a call of the heartbeat was answered: Redis
// does not know the session, or no call of the last lease's time was answered. In that case Redis
// may have forgotten that there is a session whose leases are this short, and take a larger step of
// its clock for none. A call has to say so first.
func (c *Core) blocked(now time.Duration) bool {
	return c.heart.answered < c.needsCall || now-c.renewed >= c.cfg.TTL
}

// unblock sees to it that a call that ends blocked is on its way. If none is answered for a while,
// what waits for it fails: see failBlocked.
func (c *Core) unblock(now time.Duration) {
	if !c.heart.onTheWay(max(c.needsCall, 1)) {
		c.fx.Heartbeat = true
	}
	if c.blockedSince == 0 {
		c.blockedSince = max(now, 1)
	}
}

// NextBatch takes the next batch from the outbox, or returns nil if there is nothing to send now.
func (c *Core) NextBatch(now time.Duration) *Batch {
	if c.inFlight != nil || c.left || c.nothingToSend() {
		return nil
	}
	if c.blocked(now) {
		c.unblock(now)
		return nil
	}
	b := &Batch{sent: now}
	n := min(len(c.drops), maxBatch)
	b.drops = append(b.drops, c.drops[:n]...)
	c.drops = remove(c.drops, n)
	for len(c.outbox) > 0 && len(b.requests) < maxBatch {
		r := c.outbox[0]
		c.outbox = remove(c.outbox, 1)
		r.queued = false
		// by the reply to an earlier time it was sent: it may even be released by now
		if !r.settled {
			b.requests = append(b.requests, r)
		}
	}
	if len(c.offers) > 0 {
		b.offer = c.offers[0].pool
		b.X.Offered, b.X.Offerer = c.offers[0].n, b.offer.name
		c.offers = c.offers[1:]
	}
	if len(b.drops)+len(b.requests) == 0 && b.offer == nil && !c.confirms {
		return nil
	}
	b.X.Session, b.X.TTLMillis, b.X.MaxWaiting = c.cfg.Session, c.ttlMillis(), c.cfg.MaxWaiters
	b.X.MoveMicros = c.takeMoveCost()
	b.X.Epoch, b.X.Expected = c.epoch, c.anchor.expected(now)
	// Permits of a session with a minimum are counted one by one.
	lean := c.cfg.Min == 0
	for _, d := range b.drops {
		if lean && d.plain {
			b.X.Release = append(b.X.Release, d.ids[0])
		} else {
			b.X.Drop = append(b.X.Drop, message.Permits(c.ttlMillis(), d.ids...))
		}
	}
	for _, r := range b.requests {
		r.sent = true
		switch alone := lean && len(r.ids) == 1; {
		case alone && r.Kind == message.Wait:
			b.X.Waits = append(b.X.Waits, r.ids[0])
		case alone && r.Kind == message.Try &&
			r.Permits[0].Pool == nil: // the script counts a pool's permits in its own lane
			b.X.Tries = append(b.X.Tries, r.ids[0])
		default:
			kind := r.Kind
			if kind == message.Pool && !r.Pool.everHeld {
				kind = message.Join
			}
			b.X.Ask = append(b.X.Ask, message.Ask{Kind: kind,
				Request: message.Permits(c.ttlMillis(), r.ids...)})
		}
	}
	c.inFlight = b
	if c.flightDue == 0 {
		c.flightDue = now + c.deadAfter()
	}
	return b
}

// remove drops the first n elements, and lets go of the array when none is left.
func remove[T any](list []T, n int) []T {
	if n == len(list) {
		return nil
	}
	return list[n:]
}

// requeue returns a batch to the outbox, as if it had not been sent.
func (c *Core) requeue(b *Batch) {
	c.returnMoveCost(b.X.MoveMicros)
	c.drops = append(b.drops, c.drops...)
	var requests []*Request
	for _, r := range b.requests {
		if !r.settled && !r.queued {
			r.queued = true
			requests = append(requests, r)
		}
	}
	c.outbox = append(requests, c.outbox...)
}

// deadAfter is how old a flight is before we ask whether its connection is dead.
func (c *Core) deadAfter() time.Duration {
	return max(min(c.cfg.TTL/5, time.Second), 3*c.heart.rtt+minHedge)
}

// MaxResends bounds how often one batch is sent once more.
const MaxResends = 2

// lookAtFlight has a batch sent once more if a slow Redis does not explain how long it takes: a
// call of the heartbeat was sent after the batch was sent last, over another connection, and has
// been answered. If there was none yet it sends one. While Redis answers nothing at all the flight
// stays as it is: its reply may come, too. Redis executes what it reads in the order in which
// connections are ready, so the reply of the flight could be late by little; it is waited for that
// little.
//
// It is armed by the first flight, looks at what is in flight then, and rests when nothing is: a
// flight that is answered in time pays nothing for it.
func (c *Core) lookAtFlight(now time.Duration) {
	c.flightDue = 0
	b := c.inFlight
	if b == nil || b.resent >= MaxResends {
		return
	}
	h := &c.heart
	last := max(b.sent, b.again)
	little := max(h.rtt/2, minHedge/5)
	next := last + c.deadAfter() - now
	switch {
	case next > 0:
	case h.probed > last && now-h.heard >= little:
		b.resent++
		c.fx.Resend = b
		next = c.deadAfter()
	case h.probed > last:
		next = little
	default:
		if h.sent <= last {
			c.fx.Heartbeat = true
		}
		next = little
	}
	c.flightDue = now + max(next, time.Millisecond)
}

// A Failure is why a batch has no reply.
type Failure uint8

const (
	Gone   Failure = iota // Redis does not know the session, or another state of it
	Failed                // Redis did not answer, or with an error
)

// BatchFailed takes the end of a batch without a reply. Of one that failed it is unknown whether
// Redis carried it out. Drops and waiting requests are repeated after a pause; requests that do not
// wait fail.
func (c *Core) BatchFailed(now time.Duration, b *Batch, why Failure, err error) {
	if b != c.inFlight {
		return
	}
	if b.failed++; why == Failed && b.failed <= b.resent {
		return // it was sent more often, and one of the others may be answered
	}
	c.inFlight = nil
	if why == Gone && !c.gone {
		c.gone = true
		c.requeue(b) // where Leave finds it
		c.needsCall = c.heart.last + 1
		c.flush(now)
		return
	}
	// Gone again, although a call was answered since: calls may reach another server than batches.
	// Only the pause of what failed keeps the session from asking both in turn, as fast as they
	// answer.
	c.gone = false
	c.setDown(err)
	c.returnMoveCost(b.X.MoveMicros)
	c.fail(now, b.requests, b.drops, err)
	c.flush(now)
}

// fail ends requests that do not wait, and has the drops sent again later.
func (c *Core) fail(now time.Duration, requests []*Request, drops []*Drop, err error) {
	for _, d := range drops {
		c.outcome(d, Unavailable(err))
		if d.covered || now-d.since < c.cfg.TTL {
			c.failedDrops = append(c.failedDrops, d) // if the session has left, Leftover finds it
		}
	}
	for _, r := range requests {
		if r.settled || r.Kind.Waits() {
			continue
		}
		c.settle(now, r, Unavailable(err))
		if !r.Extends && r.sent {
			c.drop(now, r.ids...) // it may have been granted all the same
		}
	}
	c.retryIn(now, min(c.cfg.RetryInterval, MaxRetryPause))
}

// failBlocked fails what waits for a call of the heartbeat, as that has brought no answer.
func (c *Core) failBlocked(now time.Duration, err error) {
	if c.blockedSince == 0 {
		return
	}
	c.blockedSince = 0
	if c.inFlight != nil || !c.blocked(now) {
		return
	}
	requests, drops := c.outbox, c.drops
	c.outbox, c.drops = nil, nil
	for _, r := range requests {
		r.queued = false
	}
	c.fail(now, requests, drops, err)
}

// BatchAnswered settles what Redis answered. again: what was answered is Again.
func (c *Core) BatchAnswered(now time.Duration, b *Batch, got message.Exchanged, again bool) {
	if b != c.inFlight {
		return // it was sent more than once, and this is not the first reply
	}
	c.inFlight, c.gone = nil, false
	c.setDown(nil)
	if b.X.Epoch != "" && b.X.Epoch != c.epoch {
		// The heartbeat has found that Redis forgot, and this it did before. What it granted it
		// forgot, too.
		c.requeue(b)
		c.flush(now)
		return
	}
	if !got.All || len(b.requests) > 0 { // else the script did not look
		c.setNoMemory(got.Full, got.Now)
	}
	c.roundTrip = now - b.sent
	if again { // what the connection took that was given up says nothing of Redis
		c.roundTrip = now - max(b.sent, b.again)
	}
	c.heart.rtt = max(c.heart.rtt, c.roundTrip)
	if got.Now > 0 && b.sent >= c.anchor.local {
		c.anchor = anchor{local: b.sent, redis: got.Now}
	}
	for _, d := range b.drops {
		c.outcome(d, nil)
	}
	granted := got.Granted
	for _, r := range b.requests {
		r.waited = r.waited || r.answered
		r.answered, r.full, r.noMemory = true, got.Free == 0, false
		if got.All {
			granted = append(granted, r.ids...)
		}
		if r.Extends && r.settled {
			// Nobody waits for it any more. Should its permit be lost by now, the lease is left to
			// expire (see lose).
			granted = slices.DeleteFunc(granted, func(id string) bool { return id == r.ids[0] })
		}
	}
	c.granted(now, granted, b.sent)
	for _, id := range got.Refused {
		r := c.asked[id]
		if r == nil {
			continue
		}
		if r.Extends && c.permits[id] != nil {
			c.lose(now, r.Permits[0]) // before its caller hears of it
		}
		if len(r.ids) > 1 {
			c.drop(now, r.ids...) // some may be held: the others were revoked by hand
		}
		c.settle(now, r, c.refusal(r))
	}
	for _, id := range got.Crowded {
		if r := c.asked[id]; r != nil {
			c.settle(now, r, fmt.Errorf("%w: %d wait for %q already", ErrCapacity, got.Waiting,
				c.cfg.Base))
		}
	}
	for _, id := range got.NoMemory {
		// A caller that waits asks again until its patience ends, as when Redis does not answer. It
		// has no place in the queue meanwhile.
		if r := c.asked[id]; r != nil {
			r.noMemory = true
			if !r.Kind.Waits() {
				c.settle(now, r, Unavailable(errNoMemory))
			}
		}
	}
	if len(c.asked) > 0 {
		pause := c.cfg.RetryInterval - c.cfg.RetryInterval/8 // retryIn adds up to as much
		if wake := Until(got.Wake+1, got.Now); got.Wake > 0 && wake < pause {
			pause = max(wake, time.Millisecond)
		}
		c.retryIn(now, pause)
	}
	c.tellWaiting(got.Waiting > 0, b.sent)
	if b.offer != nil && got.Promised.Recalled > 0 {
		c.tell(Event{Kind: Told, Pool: b.offer, Name: b.X.Offerer, Epoch: b.X.Epoch,
			Tally: got.Promised, Offered: true})
	}
	if b.offer != nil && again {
		c.BeatSoon()
	}
	c.flush(now)
}

func (c *Core) refusal(r *Request) error {
	switch {
	case r.Extends:
		return fmt.Errorf("%w: %q does not hold it any more", ErrLost, c.cfg.Base)
	case len(r.ids) > 1:
		return fmt.Errorf("%w: %q has no room for %d permits together", ErrCapacity, c.cfg.Base,
			len(r.ids))
	}
	return fmt.Errorf("%w: %q has no permit free", ErrCapacity, c.cfg.Base)
}

var errSilent = errors.New("no answer")
