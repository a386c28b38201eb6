package core

import (
	"fmt"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Stats are the figures of a session at one instant. The counters count since it began.
type Stats struct {
	Capacity, Held, Waiting int
	Up, Paused              bool
	Heartbeats, Requests    int64 // round trips
	Lost, Outages, Fenced   int64
	RoundTrip               time.Duration
}

// Stats returns the figures.
func (c *Core) Stats(now time.Duration) Stats {
	s := c.counts
	s.Capacity, s.Held, s.Waiting = int(c.capacity), len(c.permits), len(c.Unsettled())
	s.Up, s.Paused = c.down == nil && c.epoch != "", now < c.pausedUntil
	s.Heartbeats, s.RoundTrip = int64(c.heart.last), c.heart.rtt
	return s
}

// SetInfo sets what calls of the heartbeat tell operators of this session.
func (c *Core) SetInfo(json string) { c.info = json }

// incidents counts events since the last call of the heartbeat that Redis answered, for the fleet's
// log of changes. If a call is answered but its reply is lost, the next one tells it again.
type incidents struct {
	lost, fenced int
	outage       time.Duration // the longest
}

func (i *incidents) add(more incidents) {
	i.lost += more.lost
	i.fenced += more.fenced
	i.outage = max(i.outage, more.outage)
}

func (i incidents) String() string {
	var list []string
	if i.lost > 0 {
		list = append(list, fmt.Sprintf("leases lost: %d", i.lost))
	}
	if i.outage > 0 {
		list = append(list, fmt.Sprintf("Redis did not answer for %v", i.outage.Round(time.Millisecond)))
	}
	if i.fenced > 0 {
		list = append(list, fmt.Sprintf("backends of expired leases ended: %d", i.fenced))
	}
	return strings.Join(list, "; ")
}

// AtCapacity is the error of a caller that waited for a permit for as long as it may.
func (c *Core) AtCapacity(now time.Duration) error {
	p, ok := message.ParsePause(c.pause)
	switch {
	case ok && now < c.pausedUntil:
		return fmt.Errorf("%w: grants are paused by %s: %s", ErrCapacity, p.By, p.Reason)
	case now < c.pausedUntil:
		return fmt.Errorf("%w: grants are paused, because Redis lost its state", ErrCapacity)
	}
	return ErrCapacity
}

// farAway is later than any process lives, and no sum with it overflows.
const farAway = 1 << 61

// setPause takes from a heartbeat's answer until when grants are paused, and by whom.
func (c *Core) setPause(now time.Duration, got message.Renewed) {
	until := func(at int64) time.Duration { return now + min(Until(at, got.Now), farAway) }
	c.pausedUntil = until(got.PausedUntil)
	p, ok := message.ParsePause(got.Pause)
	if ok {
		c.pausedUntil = max(c.pausedUntil, until(p.Until))
	}
	before := c.pause
	if c.pause = got.Pause; before == got.Pause {
		return
	}
	switch {
	case ok && p.Drain:
		c.warn("an operator drains the fleet: nothing is granted, and all permits are recalled",
			"by", p.By, "reason", p.Reason)
	case ok:
		c.warn("an operator has paused grants", "by", p.By, "reason", p.Reason)
	default:
		c.warn("grants are resumed")
	}
}
