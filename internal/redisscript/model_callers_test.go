package redisscript

import (
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is the callers of a session: they ask for permits, wait for them, give up and release.

// A request of a caller, of a pool, or of the core itself.
type request struct {
	*core.Request
	trouble int           // of its session, when it was made
	seen    bool          // Redis has executed it
	asked   time.Duration // when an answer to it was last heard
	ofPool  *pool         // whose try it is
	trying  bool          // that try has not ended
	caller  bool          // a caller waits for it
}

// A dropping is a release that Redis has not executed yet.
type dropping struct {
	id      string
	since   time.Duration
	trouble int
}

// want makes a request of a caller, that waits for it as long as patience.
func (t *trial) want(s *session, kind message.Kind, patience time.Duration, permits ...*core.Permit) *request {
	return t.submit(s, nil, patience, &core.Request{Kind: kind, Permits: permits, Extends: kind == message.Hold})
}

// tryFor makes a request of a pool that does not wait.
func (t *trial) tryFor(s *session, p *pool, r *core.Request) { t.submit(s, p, 0, r) }

func (t *trial) submit(s *session, of *pool, patience time.Duration, asks *core.Request) *request {
	r := t.noteRequest(s, asks)
	r.caller, r.ofPool, r.trying = true, of, of != nil
	t.step(s, func(c *core.Core, now time.Duration) {
		if !asks.Kind.Waits() {
			patience = c.TryPatience()
		}
		c.Submit(now, asks)
	})
	if patience > 0 {
		t.at(t.now+patience, s, func() {
			if !t.calm {
				t.giveUp(s, r)
			}
		})
	}
	return r
}

func (t *trial) noteRequest(s *session, r *core.Request) *request {
	q := &request{Request: r, trouble: s.trouble, asked: t.now}
	s.requests = append(s.requests, q)
	return q
}

func (s *session) requestOf(id string) *request {
	for _, r := range s.requests {
		for _, p := range r.Permits {
			if p.ID == id {
				return r
			}
		}
	}
	return nil
}

// giveUp ends the patience of a caller.
func (t *trial) giveUp(s *session, r *request) {
	if !r.caller {
		return
	}
	r.caller = false
	t.say("%s gives up what it asked for: %s", s.name, ids(r.Permits))
	was := make([]core.State, len(r.Permits))
	for i, p := range r.Permits {
		was[i] = p.State()
	}
	t.step(s, func(c *core.Core, now time.Duration) { _ = c.GiveUp(now, r.Request, 0) })
	t.checkGivenUp(r)
	for i, p := range r.Permits {
		if p.State() == core.Released && was[i] != core.Released {
			t.dropped(s, p.ID)
		}
	}
	t.tryEnds(s, r)
}

func ids(list []*core.Permit) string {
	var out []string
	for _, p := range list {
		out = append(out, p.ID)
	}
	return strings.Join(out, " ")
}

// settled is the end of a request, as the core sees it. Its caller goes on a little later.
func (t *trial) settled(s *session, r *core.Request) {
	_, err := r.Settled()
	t.say("%s: settled, %s: %v", s.name, ids(r.Permits), err)
	t.checkSettled(s, r, err)
	s.over[r] = true
	if err != nil && !r.Extends {
		for _, p := range r.Permits {
			s.ended[p.ID] = t.now
		}
	}
	i := slices.IndexFunc(s.requests, func(q *request) bool { return q.Request == r })
	if i < 0 {
		return // it was made in this very step
	}
	q := s.requests[i]
	s.requests = slices.Delete(s.requests, i, i+1)
	switch {
	case !q.caller:
	case s.random.IntN(30) == 0 && !t.calm:
		t.soon(s, func() { t.giveUp(s, q) }) // it gave up at this very moment
	default:
		q.caller = false
		t.tryEnds(s, q)
		if p := q.ofPool; p != nil && err == nil {
			got := r.Permits[0].Owner.(*permit)
			if got.told = true; p.gone || s.leaves {
				t.soon(s, func() { t.give(s, p, got) })
			}
		}
	}
}

func (t *trial) tryEnds(s *session, r *request) {
	if p := r.ofPool; p != nil && r.trying {
		r.trying = false
		t.step(s, func(c *core.Core, _ time.Duration) { c.TryEnds(&p.core) })
	}
}

// dropped notes that Redis is to be told of a release.
func (t *trial) dropped(s *session, id string) {
	s.dropping = append(s.dropping, &dropping{id, t.now, s.trouble})
	s.ended[id] = t.now
}

// release gives a permit back that no pool holds, held or lost.
func (t *trial) release(s *session, p *permit) {
	t.say("%s releases %s", s.name, p.ID)
	var d *core.Drop
	t.step(s, func(c *core.Core, now time.Duration) { d = c.Release(now, &p.Permit) })
	if d != nil {
		t.dropped(s, p.ID)
	}
}

// permitOf is nil for one that was released.
func (s *session) permitOf(id string) *permit {
	for _, p := range s.permits {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// mine are the permits in one of those states, of one pool or of none.
func (s *session) mine(of *core.Pool, states ...core.State) (list []*permit) {
	for _, p := range s.permits {
		if p.Pool == of && slices.Contains(states, p.State()) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *permit) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// forgetReleased forgets what is over.
func (s *session) forgetReleased() {
	s.permits = slices.DeleteFunc(s.permits, func(p *permit) bool { return p.State() == core.Released })
}
