package redisscript

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is Postgres: the backends under permits, and how sessions record them,
// look for them and end them.

// A backend of Postgres, under a permit.
type backend struct {
	tag      string // "<pid> <start> <server>"
	recorded bool   // Redis has confirmed that it knows of it
}

// connect opens a connection under a permit whose former connection has ended. If that one was
// recorded, the pool first has Redis record that there is none any more.
func (t *trial) connect(s *session, p *permit) {
	if p.connecting {
		return
	}
	delete(t.postgres, p.ID)
	text, held := "", false
	t.step(s, func(c *core.Core, _ time.Duration) { text, held = c.ClearBackend(&p.Permit) })
	switch {
	case !held:
	case text == "":
		t.dial(s, p)
	default:
		p.connecting = true
		t.record(s, p, text, func(err error) {
			p.connecting = false
			if err == nil {
				t.step(s, func(c *core.Core, _ time.Duration) { c.BackendCleared(&p.Permit, text) })
				p.vacated = true
				t.dial(s, p)
			}
		})
	}
}

// dial opens a connection, and records it. If that fails, it closes the connection.
func (t *trial) dial(s *session, p *permit) {
	if s.local(t.now) >= p.TrustedUntil() {
		return
	}
	t.pids++
	b := &backend{tag: fmt.Sprintf("%d %d %d", 100+t.pids, t.clock(), modelStart)}
	t.postgres[p.ID] = b
	t.say("%s opens %s under %s", s.name, b.tag, p.ID)
	text, held := "", false
	t.step(s, func(c *core.Core, _ time.Duration) { text, held = c.RecordBackend(&p.Permit, b.tag) })
	if !held {
		t.failf("trust: %s trusts %s, and may not cover a backend by it", s.name, p.ID)
	}
	p.covered, p.vacated, p.connecting = true, false, true
	t.record(s, p, text, func(err error) {
		p.connecting = false
		switch {
		case t.postgres[p.ID] != b:
		case err != nil:
			delete(t.postgres, p.ID)
		default:
			b.recorded = true
		}
	})
}

// record tells Redis which backend a permit covers, or that it covers none.
func (t *trial) record(s *session, p *permit, text string, then func(error)) {
	l := t.luckOf(s, "record")
	t.sayLuck(s, "a record", l)
	epoch, expected := s.core.Epoch(), t.expected(s)
	var err error
	run := func() {
		err = t.recordBackend(s, epoch, expected, p.ID, text)
		if l.fate == doubled && err == nil {
			t.twice(func() { err = t.recordBackend(s, epoch, expected, p.ID, text) })
		}
	}
	answered := func() {
		switch {
		case errors.Is(err, message.ErrNotHeld):
			t.step(s, func(c *core.Core, now time.Duration) { c.NotHeld(now, &p.Permit) })
		case errors.Is(err, message.ErrGone):
			t.step(s, func(c *core.Core, _ time.Duration) { c.BeatSoon() })
		}
		then(err)
	}
	t.send(s, l, t.plan.ttl/4, run, answered, then)
}

// reap ends backends in quarantine, or looks for backends.
func (t *trial) reap(s *session, fx core.Effects) {
	if len(fx.End) > 0 {
		t.at(t.now+t.plan.roundTrip, s, func() { t.endBackends(s, fx.End) })
	}
	if len(fx.Look) > 0 {
		t.look(s, fx)
	}
}

// endBackends ends backends in quarantine. The server refuses to end some of them.
func (t *trial) endBackends(s *session, list []core.Record) {
	gone := make([]bool, len(list))
	for i, r := range list {
		pid, _ := strconv.Atoi(strings.Fields(r.Tag)[0])
		if pid%2 == 0 && !t.faultless {
			continue
		}
		gone[i], t.seenGone[r.ID] = true, true
		if b := t.postgres[r.ID]; b != nil && strings.HasPrefix(b.tag, r.Tag+" ") {
			t.say("%s ends backend %s under %s", s.name, r.Tag, r.ID)
			delete(t.postgres, r.ID)
		}
	}
	t.step(s, func(c *core.Core, now time.Duration) { c.Ended(now, list, gone) })
}

// look looks for backends, and tells Redis which of them are gone, if any.
func (t *trial) look(s *session, fx core.Effects) {
	var ids, records []string
	for _, r := range fx.Look {
		if b := t.postgres[r.ID]; b == nil || b.tag != r.Tag {
			ids, records = append(ids, r.ID), append(records, r.Text)
		}
	}
	looked := func() { t.step(s, func(c *core.Core, _ time.Duration) { c.Looked() }) }
	l := t.luckOf(s, "look")
	t.sayLuck(s, "what it saw", l)
	expected := t.expected(s)
	run := func() {
		t.answerLook(s, fx.LookEpoch, fx.LookSince, expected, ids, records)
		if l.fate == doubled {
			t.twice(func() { t.answerLook(s, fx.LookEpoch, fx.LookSince, expected, ids, records) })
		}
	}
	t.send(s, l, t.plan.ttl, run, looked, func(error) { looked() })
}

// endsSoon ends the connections of a session, at once or a moment later.
func (t *trial) endsSoon(s *session, atOnce bool) {
	for id, b := range t.postgres {
		if sessionOf(id) == s.name && !b.recorded {
			delete(t.postgres, id)
		}
	}
	if atOnce {
		t.endsAll(s)
	} else {
		t.at(t.now+60*time.Millisecond, nil, func() { t.endsAll(s) })
	}
}

// endsAll ends the connections of a session.
func (t *trial) endsAll(s *session) {
	for _, id := range keysInOrder(t.postgres) {
		if sessionOf(id) == s.name {
			delete(t.postgres, id)
		}
	}
}
