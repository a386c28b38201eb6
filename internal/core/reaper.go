package core

import (
	"fmt"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Quarantine. A process that is stopped cannot end its connections, so its backends outlive its
// leases. A pool that records which backend each of its permits covers (see RecordBackend) need not
// end them itself. A permit whose lease expired then stays counted, in quarantine. It is free once
// another session has had Postgres end that backend, or found it gone. The engine knows a backend
// by an opaque tag, and asks a pool that is a reaper to end it or to look for it. The rules are in
// internal/redisscript/quarantine.lua.

// RecordBackend notes which backend p covers, in place of what it covered before, and returns what
// the shell has to tell Redis. It must be called before another connection can be opened under p.
// ok is false if p is not held.
//
// Four messages can cross the record:
//
//   - A loss of p. If it comes first, the shell returns it. If it comes later, the backend is
//     recorded, and the pool ends it.
//   - A release of p, if the connection was closed meanwhile. If the release overtakes the record,
//     Redis answers that p is not held.
//   - The records of another connection that was opened under p since. Its ClearBackend and its
//     RecordBackend came later, so what they record stays: Redis keeps the record with the highest
//     number.
//   - A call of the heartbeat that was made before this RecordBackend: the same applies. Calls that
//     are made after it say what the record does.
//
// So Redis may know a record that failed here. If p expires, a reaper then looks for that backend
// in vain, and no more: the pool closes the connection, and opens another under p or gives p back.
func (c *Core) RecordBackend(p *Permit, tag string) (record string, ok bool) {
	if p.state != Held {
		return "", false
	}
	p.tag, p.vacant = tag, false
	p.records++
	return p.record(), true
}

// ClearBackend notes that p covers no backend any more, because another connection is about to be
// opened under p. The shell must tell Redis the record before that, unless it is "": then Redis
// knows of no backend. Another session that sees the recorded backend gone frees p, and must never
// do that while p covers a connection of which it knows nothing. That session compares the record
// in the step that frees p. So either this record comes first, and p stays held; or p is free
// first, and Redis answers that it is not held.
func (c *Core) ClearBackend(p *Permit) (record string, ok bool) {
	if p.state != Held {
		return "", false
	}
	if p.records == 0 || p.vacant {
		return "", true
	}
	if p.tag != "" { // else the last record failed, and is said again
		p.tag = ""
		p.records++
	}
	return p.record(), true
}

// BackendCleared notes that Redis has confirmed a record that ClearBackend returned.
func (c *Core) BackendCleared(p *Permit, record string) {
	if p.state == Held && p.record() == record {
		p.vacant = true
	}
}

// record returns what Redis is told of the backend that p covers: "" if p never covered one, and a
// tag of zeros between two of them. The number orders the records: a later one can overtake an
// earlier one on its way.
func (p *Permit) record() string {
	if p.records == 0 {
		return ""
	}
	tag := p.tag
	if tag == "" {
		tag = noTag
	}
	return fmt.Sprintf("%s %d", tag, p.records)
}

// noTag is the tag of no backend.
const noTag = "0 0 0"

// A Record is one permit's backend, as Redis tells it. The tag of a backend in quarantine lacks its
// server.
type Record struct{ ID, Text, Tag string }

func newRecord(id, text string, tagWords int) Record {
	words := strings.Fields(text)
	return Record{ID: id, Text: text, Tag: strings.Join(words[:min(len(words), tagWords)], " ")}
}

const (
	// endPause is the first pause before the session ends the same backend again. It doubles, so
	// that a backend that no session can end does not keep them busy.
	endPause    = time.Second
	maxEndPause = time.Minute
)

// ending is one backend in quarantine that this session was asked to end.
type ending struct {
	underWay bool
	pause    time.Duration // after the last try
	next     time.Duration // when the next may be
}

// end has a pool of this session end backends in quarantine.
func (c *Core) end(now time.Duration, list []Record) {
	reaper := c.reaper()
	if len(list) == 0 || reaper == nil || c.closed {
		return
	}
	for _, r := range list {
		e := c.ending[r.ID]
		if e != nil && (e.underWay || now < e.next) {
			continue
		}
		if e == nil {
			e = &ending{pause: endPause / 2}
			c.ending[r.ID] = e
		}
		e.underWay = true
		c.fx.End = append(c.fx.End, r)
	}
	c.fx.Reaper = reaper
}

// Ended takes the outcome of Effects.End. Each session that finds a backend gone drops its permit:
// to drop it twice is the same as once.
func (c *Core) Ended(now time.Duration, list []Record, gone []bool) {
	n := 0
	for i, r := range list {
		if i < len(gone) && gone[i] {
			n++
			c.counts.Fenced++
			c.incidents.fenced++
			delete(c.ending, r.ID)
			c.drop(now, r.ID)
			continue
		}
		e := c.ending[r.ID]
		e.underWay = false
		e.pause = min(2*e.pause, maxEndPause)
		e.next = now + e.pause
	}
	if !c.closed {
		c.warn("leases expired without release: their Postgres backends are ended", "permits",
			len(list), "gone", n)
	}
	c.flush(now)
}

// Looks. A process that is killed leaves its permits held until their leases end, though Postgres
// has ended its backends at once. While a request waits, a script asks one session to look for the
// recorded backends of each session without a subscription. The session looks over a connection of
// its own, and Redis frees the permits of backends that are gone. Redis is told, too, if none is: it
// can hold everything else up until then.
//
//	      push              a reaper looks; then the script gone
//	idle ------> looking -------------------------------------> idle
//
// A push that comes meanwhile is dropped, and a look that failed is not repeated: while a request
// waits, Redis soon asks for the next one.

// look has a pool of this session look for backends.
func (c *Core) look(push message.Push) {
	reaper := c.reaper()
	if reaper == nil || c.closed || c.looking || push.Epoch != c.epoch || len(push.IDs) == 0 {
		return
	}
	c.looking = true
	for i, id := range push.IDs {
		c.fx.Look = append(c.fx.Look, newRecord(id, push.Records[i], 3))
	}
	c.fx.LookEpoch, c.fx.LookSince, c.fx.Reaper = push.Epoch, push.Since, reaper
}

// Looked is the end of what Effects.Look asked for.
func (c *Core) Looked() { c.looking = false }

// reaper is the pool whose permits cover most backends, or nil: it has the most connections over
// which to ask Postgres.
func (c *Core) reaper() *Pool {
	covering := make(map[*Pool]int)
	for _, p := range c.permits {
		if p.Pool != nil && p.tag != "" {
			covering[p.Pool]++
		}
	}
	var best *Pool
	for pool, n := range covering {
		if n > covering[best] {
			best = pool
		}
	}
	return best
}
