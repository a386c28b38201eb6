package core

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The end of a session:
//
//	open --> Close: nothing is acquired --> Leave: nothing is sent --> the script leave, with Leftover
//
// In between, pools give back what they hold. What was on its way when the session left can bring
// back what the script removed; so the shell leaves once more, with Leftover again.

// Close withdraws all requests, and asks the pools to give everything back. Requests are withdrawn
// while the session still listens, by the drops of a last batch: a grant that crosses its
// withdrawal is then dropped with it.
func (c *Core) Close(now time.Duration) {
	c.closed = true
	for _, r := range c.Unsettled() {
		c.withdraw(now, r, fmt.Errorf("%w", ErrClosed))
	}
	c.offers, c.retryAt = nil, 0
	c.tellAll(Closing)
}

// Returned reports whether the pools hold nothing any more, and nothing is on its way to Redis. If
// Redis does not answer, what is held ends with its lease.
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
		// else its pool could not end that in time: it stays counted until others have
		if p.records == 0 {
			requests = append(requests, message.Permits(c.ttlMillis(), id))
		}
		p.state, p.trusted = Lost, 0
		c.fx.Trust = append(c.fx.Trust, p)
	}
	clear(c.permits)
	c.expireAt = 0
	return requests
}

// Leftover takes what is still to be removed: what was not sent, what Redis did not answer, and
// what it may not answer.
func (c *Core) Leftover() (requests []string) {
	drops := append(c.drops, c.failedDrops...)
	if c.inFlight != nil {
		drops = append(drops, c.inFlight.drops...)
	}
	c.drops, c.failedDrops = nil, nil
	for _, d := range drops {
		requests = append(requests, message.Permits(c.ttlMillis(), d.ids...))
		c.outcome(d, nil)
	}
	return requests
}

// Crossing reports whether anything is on its way to Redis that it may execute after the session
// has left.
func (c *Core) Crossing() bool { return len(c.heart.calls) > 0 || c.inFlight != nil }
