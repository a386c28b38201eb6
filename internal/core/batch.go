package core

import (
	"errors"
	"fmt"
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

// A Batch holds the requests, drops and offers of one exchange:
//
//	outbox, drops, offers --> NextBatch --> in flight --> BatchAnswered
//	     ^                                      |
//	     |       BatchFailed: Gone, first time  |  BatchFailed: drops and waiting requests,
//	     +--------------------------------------+  after a pause
//
// Every part of a batch is safe to repeat. At most one batch is in flight. All that the session
// asks for meanwhile travels together in the next one.
type Batch struct {
	X message.Exchange

	requests []*Request
	drops    []*Drop
	offer    *Pool
	sent     time.Duration
	again    time.Duration // when it was last sent again, 0: never
	resent   int           // how often it was sent once more because its connection seemed dead
	failed   int           // how many of those that were sent have failed
}

// Again returns b as the session sends it again now, without its offer. The lost reply may have
// answered the offer, and the second answer would differ: the heartbeat tells it.
func (c *Core) Again(now time.Duration, b *Batch) message.Exchange {
	b.again = max(now, 1)
	x := b.X
	x.Offered, x.Expected = 0, c.Expected(now)
	return x
}

// nothingToSend reports whether a batch would be empty.
func (c *Core) nothingToSend() bool {
	return len(c.outbox)+len(c.drops)+len(c.offers) == 0 && !c.confirms
}

// flush asks the shell to send what is queued. If a batch is in flight, the next one takes it
// along.
func (c *Core) flush(now time.Duration) {
	if c.maySend(now) {
		c.blockedSince = 0
		c.fx.Flush = true
	}
}

// maySend reports whether there is a batch to send, and nothing in its way. If batches are blocked,
// it makes sure that a call which ends that is on its way. If Redis answers none for a while,
// failBlocked fails what waits for it.
func (c *Core) maySend(now time.Duration) bool {
	if c.inFlight != nil || c.left || c.nothingToSend() {
		return false
	}
	if !c.blocked(now) {
		return true
	}
	if !c.heart.onTheWay(c.needsCall, c.heart.last) {
		c.fx.Heartbeat = true
	}
	if c.blockedSince == 0 {
		c.blockedSince = max(now, 1)
	}
	return false
}

// blocked reports whether batches must wait until Redis has answered a call of the heartbeat. They
// must if Redis does not know the session, or has answered no call that was sent within the last
// lease. In the second case Redis may have forgotten that a session has leases this short, and may
// overlook a larger step of its clock. A call has to tell Redis first.
func (c *Core) blocked(now time.Duration) bool {
	return c.heart.answered < c.needsCall || now-c.renewed >= c.cfg.TTL
}

// NextBatch takes the next batch from the outbox, or returns nil if there is nothing to send now.
func (c *Core) NextBatch(now time.Duration) *Batch {
	if !c.maySend(now) {
		return nil
	}
	if c.gaveBack {
		c.gaveBack = len(c.drops) > maxBatch // then it may travel later
		c.askForMinimum()
	}
	b := &Batch{sent: now}
	n := min(len(c.drops), maxBatch)
	b.drops = append(b.drops, c.drops[:n]...)
	c.drops = remove(c.drops, n)
	for len(c.outbox) > 0 && len(b.requests) < maxBatch {
		r := c.outbox[0]
		c.outbox = remove(c.outbox, 1)
		r.queued = false
		// The reply to an earlier sending may have settled it. It may even be released by now.
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
	b.X.Epoch, b.X.Expected = c.epoch, c.Expected(now)
	// A session with a minimum cannot use the lean lane.
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
		// Plain permits only: the script counts a pool's permits in a lane of their own.
		case alone && r.Kind == message.Try && r.Permits[0].Pool == nil:
			b.X.Tries = append(b.X.Tries, r.ids[0])
		default:
			kind := r.Kind
			if kind == message.Pool && !r.Pool.everHeld {
				kind = message.Join
			}
			permits := message.Permits(c.ttlMillis(), r.ids...)
			b.X.Requests = append(b.X.Requests, message.Request{Kind: kind, Permits: permits})
		}
	}
	c.inFlight = b
	c.counts.Requests++
	if c.batchDue == 0 {
		c.batchDue = now + c.deadAfter()
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

// deadAfter is how old a batch in flight is before the session asks whether its connection is dead.
func (c *Core) deadAfter() time.Duration {
	return max(min(c.cfg.TTL/5, time.Second), 3*c.heart.rtt+minHedge)
}

// MaxResends bounds how often one batch is sent again.
const MaxResends = 2

// checkBatch has a batch sent once more if a slow Redis does not explain how long it takes. Redis
// is not slow if it has answered a call of the heartbeat that was sent after the batch was last
// sent, over another connection. If there was no such call yet, checkBatch sends one. While Redis
// answers nothing at all, the batch stays as it is: its reply may come, too. Redis executes what it
// reads in the order in which connections are ready. So the reply of the batch can be a little
// later than that of the call, and checkBatch waits that long.
//
// The first batch arms checkBatch. It looks at what is in flight then, and rests when nothing is. A
// batch that is answered in time pays nothing for it.
func (c *Core) checkBatch(now time.Duration) {
	c.batchDue = 0
	b := c.inFlight
	if b == nil || b.resent >= MaxResends {
		return
	}
	h := &c.heart
	last := max(b.sent, b.again)
	grace := max(h.rtt/2, minHedge/5)
	next := last + c.deadAfter() - now
	switch {
	case next > 0:
	case h.probed > last && now-h.heard >= grace:
		b.resent++
		c.fx.Resend = b
		next = c.deadAfter()
	case h.probed > last:
		next = grace
	default:
		if h.sent <= last {
			c.fx.Heartbeat = true
		}
		next = grace
	}
	c.batchDue = now + max(next, time.Millisecond)
}

// A Failure is why a batch has no reply.
type Failure uint8

const (
	Gone   Failure = iota // Redis does not know the session, or another state of it
	Failed                // Redis did not answer, or with an error
)

// BatchFailed takes the end of a batch that brought no reply. If it Failed, Redis may have executed
// it or not. Drops and waiting requests are repeated after a pause; requests that do not wait fail.
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
	// Gone again, although Redis has answered a call since: calls may reach another server than
	// batches. Only the pause after a failure keeps the session from asking both in turn, as fast
	// as they answer.
	c.gone = false
	c.setDown(now, err)
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

// failBlocked fails what waits for a call of the heartbeat, because Redis has answered none.
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

// BatchAnswered settles what Redis answered. again: it answered what Again returned.
func (c *Core) BatchAnswered(now time.Duration, b *Batch, got message.Exchanged, again bool) {
	if b != c.inFlight {
		return // it was sent more than once, and this is not the first reply
	}
	c.inFlight, c.gone = nil, false
	c.setDown(now, nil)
	if b.X.Epoch != "" && b.X.Epoch != c.epoch {
		// The heartbeat has found that Redis lost its state, and Redis executed this batch before
		// that. So it has lost what this batch was granted, too.
		c.requeue(b)
		c.flush(now)
		return
	}
	if !got.All || len(b.requests) > 0 { // else the script did not look
		c.setNoMemory(got.Full, got.Now)
	}
	c.roundTrip = now - b.sent
	if again { // the time lost on the first connection says nothing of Redis
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
			c.drop(now, r.ids...) // some may be held: the others were removed by hand
		} else {
			c.dropCopy(now, b, r)
		}
		c.settle(now, r, c.refusal(r))
	}
	for _, id := range got.Crowded {
		if r := c.asked[id]; r != nil {
			c.settle(now, r, fmt.Errorf("%w: %d wait for %q already",
				ErrCapacity, got.Waiting, c.cfg.Base))
			c.dropCopy(now, b, r)
		}
	}
	for _, id := range got.NoMemory {
		// A caller that waits asks again until its patience ends, as when Redis does not answer. It
		// has no place in the queue meanwhile.
		if r := c.asked[id]; r != nil {
			r.noMemory = true
			if !r.Kind.Waits() {
				c.settle(now, r, Unavailable(errNoMemory))
				c.dropCopy(now, b, r)
			}
		}
	}
	if len(c.asked) > 0 {
		pause := c.cfg.RetryInterval - c.cfg.RetryInterval/8 // retryIn adds up to as much
		if wake := Until(got.Wake+1, got.Now); got.Wake > 0 && wake < pause {
			pause = max(wake, time.Millisecond)
		}
		if b.again > 0 {
			// The other copy may have been executed first. Then only its reply, which is lost or
			// ignored, told of what it granted to requests in the queue. The pause keeps a network
			// that breaks each connection from being asked as fast as it answers.
			pause = min(pause, minHedge)
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

// dropCopy withdraws r, to which a reply to b has said no. If b was sent more than once, Redis may
// have executed the other copy since, and have granted or queued r, which its session has settled.
func (c *Core) dropCopy(now time.Duration, b *Batch, r *Request) {
	if b.again > 0 && !r.Extends {
		c.drop(now, r.ids...)
	}
}

func (c *Core) refusal(r *Request) error {
	switch {
	case r.Extends:
		return fmt.Errorf("%w: %q does not hold it any more", ErrLost, c.cfg.Base)
	case len(r.ids) > 1:
		return fmt.Errorf("%w: %q has no room for %d permits together",
			ErrCapacity, c.cfg.Base, len(r.ids))
	}
	return fmt.Errorf("%w: %q has no permit free", ErrCapacity, c.cfg.Base)
}

var errSilent = errors.New("no answer")
