package core

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The end of a session:
//
//	open --> Close: nothing is acquired --> Leave: nothing is sent --> script leave, with Leftover
//	     --> LeaveEnded
//
// In between, pools give back what they hold. A message that was on its way when the session left
// can bring back what the script removed. So the shell leaves once more, with Leftover again.

// Close withdraws all requests, and asks the pools to give everything back. The drops of a last
// batch withdraw the requests, while the session still listens. So a grant that crosses its
// withdrawal is dropped with it.
func (c *Core) Close(now time.Duration) {
	c.closed = true
	for _, r := range c.Unsettled() {
		c.withdraw(now, r, fmt.Errorf("%w", ErrClosed))
	}
	c.offers, c.retryAt = nil, 0
	c.tellAll(Event{Kind: Closing})
}

// Returned reports whether the pools hold nothing any more, and nothing is on its way to Redis. If
// Redis does not answer, the session does not wait for what is on its way: those permits end with
// their leases.
func (c *Core) Returned() bool {
	for _, p := range c.pools {
		if p.held > 0 {
			return false
		}
	}
	return c.down != nil || c.inFlight == nil && c.nothingToSend()
}

// Leave ends the state: nothing is held any more, and nothing is sent. It returns what Redis is to
// remove.
func (c *Core) Leave(now time.Duration) (requests []string) {
	c.left = true
	requests = c.Leftover()
	for id, p := range c.permits {
		// A permit that covers a backend stays counted: its pool could not end that backend in
		// time, and other sessions will.
		if p.records == 0 {
			requests = append(requests, message.Permits(c.ttlMillis(), id))
		}
		c.endTrust(now, p)
	}
	c.expireAt = 0
	return requests
}

// Leftover takes the drops that Redis has not confirmed: those that were not sent, those that
// failed, and those in flight. Their callers hear of LeaveEnded.
func (c *Core) Leftover() (requests []string) {
	drops := append(c.drops, c.failedDrops...)
	if c.inFlight != nil {
		drops = append(drops, c.inFlight.drops...)
	}
	c.drops, c.failedDrops = nil, nil
	for _, d := range drops {
		requests = append(requests, message.Permits(c.ttlMillis(), d.ids...))
	}
	c.leftover = append(c.leftover, drops...)
	return requests
}

// LeaveEnded takes what became of the script leave.
func (c *Core) LeaveEnded(err error) {
	for _, d := range c.leftover {
		c.outcome(d, err)
	}
	c.leftover = nil
}

// Crossing reports whether anything is on its way to Redis that it may execute after the session
// has left.
func (c *Core) Crossing() bool { return len(c.heart.calls) > 0 || c.inFlight != nil }
