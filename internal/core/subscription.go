package core

import (
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A subscription is
//
//	opened --> confirmed --> broken, or unheard: replaced
//	   |
//	   +-----> refused: replaced, after a pause that doubles
//
// It is broken if its connection ends, if it gives no sign of life, or if the server unsubscribes
// it. It is unheard if another server answers the heartbeats: its address leads there by now, and
// the old server lives on as a replica. The replica may even pass on what is published. But a
// newcomer that looks for subscribed sessions after a loss of state does not see this one, and is
// granted what it holds.

// MaxRefusedPause is the longest pause before the session replaces a subscription that was refused,
// or that is unheard again and again.
const MaxRefusedPause = time.Minute

// A listening is the state of the subscription.
type listening struct {
	confirmed   bool
	since       time.Duration // when it was confirmed
	unheard     bool          // it is being closed, to be replaced
	unheardNext time.Duration // before that time, it is not closed again for being unheard
	unheardWait time.Duration // how long that was last
}

// subscribers takes from a heartbeat's answer how many subscriptions have got a push to this
// session, at the server that answered; below zero means unknown. sent is when the call was sent.
//
// A server counts a subscription that it confirmed before the call was sent. If it counts none, it
// has lost the subscription, which the shell is about to notice, or another server has confirmed
// it. To replace it is right in both cases. If scripts and subscriptions always reach different
// servers, as behind some proxies, the new one stays unheard too. So the pauses double.
func (c *Core) subscribers(now time.Duration, n int64, sent time.Duration) {
	l := &c.listening
	switch {
	case n > 0:
		l.unheardWait = 0
		return
	case n < 0 || !l.confirmed || l.since >= sent || sent < l.unheardNext || c.left:
		return
	}
	l.unheardWait = min(max(2*l.unheardWait, c.cfg.TTL/4), MaxRefusedPause)
	l.unheardNext = now + l.unheardWait
	l.unheard, l.confirmed = true, false
	c.fx.Replace = true
}

// TakeUnheard reports whether the subscription was closed because it was unheard, and forgets that.
func (c *Core) TakeUnheard() bool {
	unheard := c.listening.unheard
	c.listening.unheard = false
	return unheard
}

// Confirmed reports whether the subscription is confirmed.
func (c *Core) Confirmed() bool { return c.listening.confirmed }

// SetConfirmed notes that Redis has confirmed the subscription, or that it is not there any more.
func (c *Core) SetConfirmed(now time.Duration, yes bool) {
	c.listening.confirmed, c.listening.since = yes, now
}

// Resubscribed asks again for all that is unanswered, because pushes may have been lost. The
// heartbeat learns of recalls.
func (c *Core) Resubscribed(now time.Duration) {
	c.repeat(now)
	c.BeatSoon()
}

// Pushed takes a push.
func (c *Core) Pushed(now time.Duration, push message.Push) {
	switch push.Kind {
	case message.PushGrant:
		for _, id := range push.IDs {
			if r := c.asked[id]; r != nil {
				r.waited = true // though the answer that says so may still be on its way
			}
		}
		if push.Epoch == c.epoch && !c.cfg.Replicated {
			c.granted(now, push.IDs, c.anchor.bound(push.Now, now))
		} else {
			// The state that granted it is lost, or the session has not heard of the new one yet.
			// Or the session relies on a grant only once a call of its own was acknowledged.
			c.repeat(now)
		}
	case message.PushWanted:
		if p := c.poolNamed(push.Pool); p != nil {
			c.toldAt = now
			c.tell(Event{Kind: Waiting, Pool: p, Waiting: true})
		}
	case message.PushRecall:
		if p := c.poolNamed(push.Pool); p != nil {
			c.tell(Event{Kind: Told, Pool: p, Name: push.Pool, Epoch: push.Epoch, Tally: push.Tally,
				After: time.Duration(push.Millis) * time.Millisecond})
		}
	case message.PushFence:
		var list []Record
		for i, id := range push.IDs {
			list = append(list, newRecord(id, push.Records[i], 2))
		}
		c.end(now, list)
	case message.PushLook:
		c.look(push)
	case message.PushLost:
		c.BeatSoon()
	case message.PushRetry:
		c.repeat(now)
	}
}
